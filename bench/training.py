"""What a training step costs on a CPU, and what is saved by how rows share a batch:

    python -m bench.training [--quick] [--seed N] [--json FILE] [--compile]

A Llama of 100 M random weights, an adapter of rank 16 on all linear layers, 8 rows to a step, rows of
lognormal length (median 60 tokens, 99th percentile 512). First in pairs, by turns: Lathe's train step and the
plainest script of trl, on the same rows in the same padded batches. Then by turns through Lathe alone:
padded, of like length, and as it chooses by itself, at as many steps. A process each side, in CPU-seconds.
A missed goal is exit status 1.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import bench.random_llama as llama
from bench.goals import show_goals
from bench.training_rows import MEDIAN, P99, write_rows
from bench.training_runs import Cost, Task, by_lathe, by_trl
from training_data.tokens import ChatTokenizer

SHAPE = llama.Shape(hidden=768, layers=15, intermediate=2048, heads=12)
ROWS_A_STEP, HELD_OUT = 8, 16
STEP_GOAL, BATCHING_GOAL = 1.05, 0.55
LOSS_GOAL = 1.01  # of the padded one: the same batches, in another order of rounding
PADDED = {"packing": False, "training_args": {"train_sampling_strategy": "random"}}
WAYS: dict[str, dict[str, Any]] = {
    "padded": PADDED,
    "of like length": {"packing": False, "training_args": {"train_sampling_strategy": "group_by_length"}},
    "as Lathe chooses": {},
}

JSON = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is run: pairs of so many steps, and rounds of each way of batching."""

    pairs: int
    pair_steps: int
    rounds: int
    round_steps: int


QUICK, FULL = Plan(3, 2, 1, 6), Plan(7, 4, 3, 24)


class Bench:
    """Trainings one after another, each side in a process of its own that has everything imported."""

    def __init__(self, folder: Path, *, seed: int, threads: int) -> None:
        self._folder, self._seed, self._threads = folder, seed, threads
        context = multiprocessing.get_context("spawn")
        self._sides = {name: ProcessPoolExecutor(1, mp_context=context) for name in ("Lathe", "trl")}

    def task(self, way: str, steps: int, more: JSON, *, evaluated: bool = True) -> Task:
        """Of the rows for so many steps, which are written once."""
        folder = self._folder / f"{steps}-steps"
        if not folder.exists():
            folder.mkdir()
            (folder / "base").symlink_to(self._folder / "base")
            tokenizer = ChatTokenizer(folder / "base")
            write_rows(folder / "rows.csv", steps * ROWS_A_STEP, tokenizer, seed=self._seed)
            write_rows(folder / "held-out.csv", HELD_OUT, tokenizer, seed=self._seed + 1)
        return Task(
            way, folder, ROWS_A_STEP, steps, self._seed, self._threads, evaluated=evaluated, more=more
        )

    def lathe(self, task: Task) -> Cost:
        return self._sides["Lathe"].submit(by_lathe, task).result()

    def trl(self, task: Task, *, defaults: bool = False) -> Cost:
        return self._sides["trl"].submit(by_trl, task, defaults=defaults).result()

    def close(self) -> None:
        for side in self._sides.values():
            side.shutdown()


@contextlib.contextmanager
def ready(seed: int, threads: int) -> Iterator[Bench]:
    """A bench with its model made, and both its processes warm."""
    with tempfile.TemporaryDirectory(prefix="lathe-bench-training-") as name:
        folder = Path(name)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as maker:
            maker.submit(llama.write, SHAPE, folder / "base", seed=seed).result()
        bench = Bench(folder, seed=seed, threads=threads)
        try:
            warm = bench.task("warm", 1, PADDED, evaluated=False)
            bench.lathe(warm)
            bench.trl(warm)
            yield bench
        finally:
            bench.close()


def pairs(bench: Bench, plan: Plan) -> JSON:
    """Lathe and trl on the same batches, by turns, each first as often as the other; once trl as it comes."""
    task = bench.task("pairs", plan.pair_steps, PADDED, evaluated=False)
    found: list[dict[str, Cost]] = []
    for turn in range(plan.pairs):
        sides = [("Lathe", bench.lathe), ("trl", bench.trl)]
        found.append({name: run(task) for name, run in (sides if turn % 2 else sides[::-1])})
        ratio = found[-1]["Lathe"].cpu / found[-1]["trl"].cpu
        print(f"pair {turn + 1}: Lathe's CPU-seconds / trl's {ratio:.3f}", flush=True)
    defaults = bench.trl(task, defaults=True)
    return {
        "ratios": [pair["Lathe"].cpu / pair["trl"].cpu for pair in found],
        "cpu_seconds_a_step": {
            name: statistics.median(pair[name].cpu_a_step for pair in found) for name in ("Lathe", "trl")
        }
        | {"trl with its defaults": defaults.cpu_a_step},
        "train_loss": {name: found[0][name].train_loss for name in ("Lathe", "trl")},
    }


def batching(bench: Bench, plan: Plan, more: dict[str, JSON]) -> JSON:
    """Each way by turns on the same rows; of each figure the median."""
    found: dict[str, list[Cost]] = {way: [] for way in (*WAYS, *more)}
    for _ in range(plan.rounds):
        for way, params in {**WAYS, **more}.items():
            found[way].append(bench.lathe(bench.task(way, plan.round_steps, params)))
            cost = found[way][-1]
            print(
                f"{way}: {cost.cpu_a_thousand:.2f} CPU-s per 1,000 tokens, eval loss {cost.eval_loss:.4f}",
                flush=True,
            )
    return {
        way: {
            "cpu_seconds_a_thousand": statistics.median(cost.cpu_a_thousand for cost in costs),
            **{
                name: asdict(costs[0])[name]
                for name in ("steps", "tokens", "train_loss", "eval_loss", "told")
            },
            "peak_mib": costs[0].memory_bytes / 2**20,
        }
        for way, costs in found.items()
    }


def goals(pairs: JSON, ways: JSON) -> list[JSON]:
    step = statistics.median(pairs["ratios"])
    padded, chosen = ways["padded"], ways["as Lathe chooses"]
    cost = chosen["cpu_seconds_a_thousand"] / padded["cpu_seconds_a_thousand"]
    loss = chosen["eval_loss"] / padded["eval_loss"]
    same = chosen["steps"] == padded["steps"] and chosen["tokens"] == padded["tokens"]
    return [
        {
            "what": "CPU-seconds a step, Lathe's train step / the plainest script of trl",
            "result": f"{step:.3f}", "goal": f"<= {STEP_GOAL}", "met": step <= STEP_GOAL,
        },
        {
            "what": "CPU-seconds per 1,000 tokens, as Lathe chooses / padded",
            "result": f"{cost:.3f}", "goal": f"<= {BATCHING_GOAL}", "met": cost <= BATCHING_GOAL,
        },
        {
            "what": "at as many steps and tokens, evaluation loss / padded",
            "result": f"{loss:.4f} ({chosen['eval_loss']:.4f} and {padded['eval_loss']:.4f}, "
            f"{chosen['steps']} steps and {padded['steps']})",
            "goal": f"<= {LOSS_GOAL}", "met": same and loss <= LOSS_GOAL,
        },
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 pairs and one round, of fewer steps")
    parser.add_argument("--seed", type=int, default=1, help="of the rows, the weights and the trainings")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument(
        "--compile", action="store_true", help="also with torch.compile, which takes a compiler"
    )
    options = parser.parse_args()
    plan = QUICK if options.quick else FULL
    threads = min(2, len(os.sched_getaffinity(0)))
    told: JSON = {"load_before": os.getloadavg(), "threads": threads, "seed": options.seed}
    told |= {"plan": asdict(plan), "rows": {"median": MEDIAN, "p99": P99}}
    more = {"compiled": {"training_args": {"torch_compile": True}}} if options.compile else {}
    with ready(options.seed, threads) as bench:
        told["pairs"] = pairs(bench, plan)
        told["batching"] = batching(bench, plan, more)
    told["load_after"] = os.getloadavg()
    told["goals"] = goals(told["pairs"], told["batching"])
    for name, seconds in told["pairs"]["cpu_seconds_a_step"].items():
        print(f"{name}: {seconds:.2f} CPU-seconds a step")
    print(f"load (1, 5, 15 min): {told['load_before']} before, {told['load_after']} after")
    show_goals(told["goals"])
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return 0 if all(goal["met"] for goal in told["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
