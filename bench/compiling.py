"""Whether compiling a model's layers pays on a CPU, its warm-up counted:

    python -m bench.compiling [--quick] [--seed N] [--json FILE] [--form tiny,100M]

An adapter of rank 16 on a Llama of random weights: `tiny`'s shape in float32, and bench/training.py's 100 M
in bfloat16. Batches of 8 rows of lognormal length without padding, one after another in one sequence, the
same for both sides: as written, and with `worker/steps/compiled_layers.py`, which begins with an empty cache.
A process each side; CPU-seconds, those of the C++ compiler too. Both must come to the same losses, or the
exit status is 1. Whether it pays is told, and no goal.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import bench.random_llama as llama
from bench.goals import show_goals
from bench.training import SHAPE
from bench.training_rows import quantiles

FORMS = {
    "tiny": llama.Shape(hidden=256, layers=4, intermediate=768, heads=4, dtype="float32"),
    "100M": SHAPE,
}
ROWS_A_STEP, RANK = 8, 16
STEPS = 40
QUICK_FORM, QUICK_STEPS = "tiny", 6  # to compile 100M alone takes minutes of two cores
WARM_STEPS = 2  # in which all is compiled
LOSS_GOAL = {"float32": 1e-4, "bfloat16": 5e-3}

JSON = dict[str, Any]


def train(form: str, compiled: bool, steps: int, seed: int, threads: int) -> JSON:
    """Each step's CPU-seconds and loss."""
    from worker.steps.runtime import prepare_runtime

    prepare_runtime(threads)
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model = _model(FORMS[form])
    with tempfile.TemporaryDirectory(prefix="lathe-bench-compiling-") as cache:
        if compiled:
            from worker.steps.compiled_layers import compile_layers

            compile_layers(model, Path(cache))
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=5e-4, fused=True)
        seconds, losses = [], []
        for batch in _batches(steps, FORMS[form].vocabulary, seed):
            began = _cpu_seconds()
            with torch.autocast("cpu", torch.bfloat16, enabled=FORMS[form].dtype == "bfloat16"):
                loss = model(**batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(_cpu_seconds() - began)
            losses.append(float(loss))
    return {"seconds": seconds, "losses": losses}


def _model(shape: llama.Shape) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from worker.steps.row_attention import take_up

    model = LlamaForCausalLM(llama.config_of(shape)).to(getattr(torch, shape.dtype))
    kept = take_up(model)
    assert kept is None, kept
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).train()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _batches(steps: int, vocabulary: int, seed: int) -> list[JSON]:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    dice = random.Random(seed)  # noqa: S311
    lengths = quantiles(steps * ROWS_A_STEP, 60, 512)
    dice.shuffle(lengths)
    rows = [{"input_ids": dice.choices(range(vocabulary), k=length)} for length in lengths]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    return [collate(rows[start : start + ROWS_A_STEP]) for start in range(0, len(rows), ROWS_A_STEP)]


def _cpu_seconds() -> float:
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, who))


def judged(plain: JSON, compiled: JSON) -> JSON:
    """What compiling takes and saves, and after how many steps it has paid for itself; None: never."""
    pairs = list(zip(plain["seconds"], compiled["seconds"], strict=True))
    saved = statistics.mean(one - other for one, other in pairs[WARM_STEPS:])
    took = sum(other - one for one, other in pairs[:WARM_STEPS])
    a_step = statistics.mean(plain["seconds"][WARM_STEPS:])
    return {
        "cpu_seconds_a_step": a_step,
        "saved_share": saved / a_step,
        "compiling_cpu_seconds": took,
        "pays_after_steps": round(took / saved) if saved > 0 else None,
        "losses_apart": max(
            abs(one / other - 1) for one, other in zip(plain["losses"], compiled["losses"], strict=True)
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of {QUICK_FORM} alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--form", help=f"with commas between; default: {','.join(FORMS)}")
    options = parser.parse_args()
    steps, threads = QUICK_STEPS if options.quick else STEPS, min(2, len(os.sched_getaffinity(0)))
    forms = (options.form or (QUICK_FORM if options.quick else ",".join(FORMS))).split(",")
    told: JSON = {"load_before": os.getloadavg(), "steps": steps, "forms": {}, "goals": []}
    for form in forms:
        sides = []
        for compiled in (False, True):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                sides.append(process.submit(train, form, compiled, steps, options.seed, threads).result())
        found = judged(*sides)
        told["forms"][form] = {**found, "shape": dataclasses.asdict(FORMS[form])}
        after = found["pays_after_steps"]
        print(
            f"{form}: {found['cpu_seconds_a_step']:.2f} CPU-s a step, compiled {found['saved_share']:.1%} "
            f"less; compiling {found['compiling_cpu_seconds']:.0f} CPU-s, paid for "
            f"{f'after {after} steps' if after is not None else 'never'}",
            flush=True,
        )
        goal = LOSS_GOAL[FORMS[form].dtype]
        told["goals"].append(
            {
                "what": f"{form}: losses, apart by a share of at most",
                "result": f"{found['losses_apart']:.2g}", "goal": f"<= {goal}",
                "met": found["losses_apart"] <= goal,
            }
        )  # fmt: skip
    told["load_after"] = os.getloadavg()
    show_goals(told["goals"])
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in told["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
