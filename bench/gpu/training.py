"""How fast adapters are trained on one GPU, and what memory it takes:

    python -m bench.gpu.training [--quick] [--seed N] [--json FILE] [--shape 1B,4B,8B] [--compile]
                                 [--unsloth-python PYTHON]

Random weights, rows of lognormal length, as many rows to a step by each: Lathe's train step as it chooses,
the same in 4 bits, trl as it comes, and Unsloth where an environment that has it is named. Tokens count
without padding; a first training of two steps warms each process. Then a QLoRA is ended at a checkpoint and
goes
on: it must come to the weights of one that nobody disturbed. `--device cpu --shape micro` shows that all of
it runs. A missed goal is exit status 1.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import bench.random_llama as llama
from bench.goals import show_goals
from bench.gpu.shapes import PEAK_TFLOPS, SHAPES, lora_mfu
from bench.training_rows import write_rows
from bench.training_runs import ALPHA, LEARNING_RATE, RANK, Cost, Ended, Task, by_lathe, by_trl, lathe_run
from training_data.tokens import ChatTokenizer

WARM_STEPS = 2
HELD_OUT = 16
LOSS_GOAL = 1.02  # of trl's: other batches, of the same rows
RESUME_GOAL = 1e-3  # of the largest weight; a GPU adds up in any order

JSON = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the smallest shape, few steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--shape", help=f"some of {', '.join(SHAPES)}, with commas between")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=32, help="to a step")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--peak-tflops", type=float, help="of 16 bits, where the device is not known here")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    parser.add_argument("--unsloth-python", type=Path, help="of an environment that has Unsloth")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    device = _alone(_device_name)
    if device is None and options.device == "cuda":
        parser.error("no CUDA device is seen here: --device cpu --shape micro shows that the script runs")
    steps = options.steps or (8 if options.quick else 40)
    names = (options.shape or ("1B" if options.quick else "1B,4B,8B")).split(",")
    told: JSON = {"device": device, "seed": options.seed, "shapes": {}, "goals": []}
    told["load_before"] = os.getloadavg()
    for name in names:
        found = measure(name, steps, options, device)
        told["shapes"][name] = found
        told["goals"] += goals(name, found)
    told["load_after"] = os.getloadavg()
    show_goals(told["goals"])
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in told["goals"]) else 1


def measure(name: str, steps: int, options: argparse.Namespace, device: str | None) -> JSON:
    """All sides on one shape, each in a process of its own, so that the memory of one is not another's."""
    shape = SHAPES[name]
    peak = options.peak_tflops or next(
        (each for key, each in PEAK_TFLOPS.items() if key in (device or "")), None
    )
    with tempfile.TemporaryDirectory(prefix="lathe-bench-gpu-") as folder_name:
        folder = Path(folder_name)
        _alone(llama.write, shape, folder / "base", seed=options.seed, device=options.device)
        tokenizer = ChatTokenizer(folder / "base")
        write_rows(folder / "rows.csv", steps * options.rows, tokenizer, seed=options.seed)
        write_rows(folder / "held-out.csv", HELD_OUT, tokenizer, seed=options.seed + 1)
        task = Task("auto", folder, options.rows, steps, options.seed, min(16, os.cpu_count() or 1))
        four = dataclasses.replace(task, way="four", bits=4)
        sides: dict[str, Callable[[], Cost]] = {
            "Lathe": lambda: _alone(warm_and_run, task, "lathe"),
            "Lathe, 4 bits": lambda: _alone(warm_and_run, four, "lathe"),
            "trl's defaults": lambda: _alone(warm_and_run, task, "trl"),
        }
        if options.compile:
            compiled = {"training_args": {"torch_compile": True}}
            more = dataclasses.replace(task, way="compiled", more=compiled)
            sides["Lathe, compiled"] = lambda: _alone(warm_and_run, more, "lathe")
        found: JSON = {}
        for side, run in sides.items():
            found[side] = _figures(run(), shape, peak)
            _show(name, side, found[side])
        if options.unsloth_python:
            found["Unsloth"] = by_unsloth(options.unsloth_python, task)
            _show(name, "Unsloth", found["Unsloth"])
        resumed = _alone(resume_difference, dataclasses.replace(four, way="resumed", more={"save_steps": 2}))
    return {"sides": found, "resumed_difference": resumed}


def warm_and_run(task: Task, side: str) -> Cost:
    run = {"lathe": by_lathe, "trl": lambda each: by_trl(each, defaults=True)}[side]
    run(dataclasses.replace(task, way=f"{task.way}-warm", steps=WARM_STEPS))
    return run(task)


def resume_difference(task: Task) -> float:
    """Train to the end, then end another at a checkpoint and go on from there.

    Returns:
        by how much the adapters differ at most, as a share of the largest weight; 0: not by a bit.
    """
    from safetensors.torch import load_file

    from worker.checkpoints import list_checkpoints

    _, whole = lathe_run(task)
    try:
        lathe_run(task, end_at=task.steps // 2)
    except Ended as ended:
        _, resumed = lathe_run(task, resume_from=list_checkpoints(ended.args[0]))
    one, other = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (whole, resumed))
    largest = max(float(weight.abs().max()) for weight in one.values())
    return max(float((weight - other[name]).abs().max()) for name, weight in one.items()) / largest


def by_unsloth(python: Path, task: Task) -> JSON:
    """The same rows in its environment; what it prints last."""
    rows = _alone(_ids, task)
    described = {
        "base": str(task.folder / "base"), "bits": task.bits, "rank": RANK, "alpha": ALPHA,
        "rate": LEARNING_RATE, "batch": task.rows, "warm": WARM_STEPS, "steps": task.steps - WARM_STEPS,
        "seed": task.seed, "output": str(task.folder / "unsloth"), "rows": rows,
        "longest": max(len(row["input_ids"]) for row in rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
    }  # fmt: skip
    path = task.folder / "unsloth.json"
    path.write_text(json.dumps(described))
    script = Path(__file__).with_name("unsloth_side.py")
    ran = subprocess.run([python, script, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    told: JSON = json.loads(ran.stdout.strip().splitlines()[-1])
    return told


def _ids(task: Task) -> list[dict[str, list[int]]]:
    from bench.training_runs import encoded

    rows = encoded(task)[0]
    return [{name: row[name] for name in ("input_ids", "labels")} for row in rows]


def _figures(cost: Cost, shape: llama.Shape, peak: float | None) -> JSON:
    rate = cost.tokens / cost.wall
    return {
        "tokens_a_second": rate,
        "memory_gb": cost.memory_bytes / 1e9,
        "lora_mfu": lora_mfu(shape, rate, peak) if peak else None,
        "eval_loss": cost.eval_loss,
        "steps": cost.steps,
        "told": cost.told,
    }


def goals(name: str, found: JSON) -> list[JSON]:
    ours, theirs = found["sides"]["Lathe"], found["sides"]["trl's defaults"]
    rate, loss = ours["tokens_a_second"] / theirs["tokens_a_second"], ours["eval_loss"] / theirs["eval_loss"]
    difference = found["resumed_difference"]
    return [
        {
            "what": f"{name}: tokens a second, Lathe / trl's defaults", "result": f"{rate:.2f}",
            "goal": ">= 1", "met": rate >= 1,
        },
        {
            "what": f"{name}: evaluation loss, Lathe / trl's defaults", "result": f"{loss:.4f}",
            "goal": f"<= {LOSS_GOAL}", "met": loss <= LOSS_GOAL,
        },
        {
            "what": f"{name}: a QLoRA that went on from a checkpoint, of its largest weight",
            "result": f"{difference:.2g} off", "goal": f"<= {RESUME_GOAL:g}", "met": difference <=
            RESUME_GOAL,
        },
    ]  # fmt: skip


def _show(shape: str, side: str, figures: JSON) -> None:
    mfu = f", LoRA-MFU {100 * figures['lora_mfu']:.0f} %" if figures.get("lora_mfu") else ""
    print(
        f"{shape} {side}: {figures['tokens_a_second']:.0f} tokens/s, {figures['memory_gb']:.2f} GB{mfu}",
        flush=True,
    )


def _alone(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(run, *args, **kwargs).result()


def _device_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


if __name__ == "__main__":
    sys.exit(main())
