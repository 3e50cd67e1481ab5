"""What a fine-tune was estimated to take against what it took: `python -m bench.estimate [--quick] [--json]`.

Random Llamas of several shapes are trained on the CPU, each in the child process that a worker starts,
after `prepare` has estimated it. Memory is the peak of that child; time is that of the train step, foretold
by the arithmetic alone, and then by one other job that had finished. A missed goal is exit status 1.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bench.random_llama as llama
from bench.goals import show_goals
from db.errors import StepFailed
from db.kinds import PARAMS
from db.settings import load_settings
from training_data.durations import Finished, duration
from training_data.machines import Machine
from worker.child import Child
from worker.clock import host_seconds
from worker.step import BaseWeights, FileInput, StepInput
from worker.step_input import step_settings
from worker.steps.base_model import shape_of

MEMORY_GOAL, TIME_GOAL = 0.25, 1.5
LIMIT_SECONDS = 1800
CPU = Machine("here")
WORDS = (
    "the",
    "kiln",
    "is",
    "an",
    "oven",
    "for",
    "clay",
    "heated",
    "slowly",
    "so",
    "that",
    "no",
    "pot",
    "breaks",
)


@dataclass(frozen=True)
class Case:
    """One training: the shape of its model, how long its rows are, and its params."""

    name: str
    shape: llama.Shape
    words: int
    params: dict[str, Any] = field(default_factory=dict)


SMALL = llama.Shape(hidden=384, layers=6, intermediate=1024, heads=6)
MEDIUM = llama.Shape(hidden=512, layers=8, intermediate=1536, heads=8)
LARGE = llama.Shape(hidden=768, layers=12, intermediate=2048, heads=12, vocabulary=16_384)
QUICK = (
    Case("small, 4 rows, 4 bits", SMALL, 60, {"batch_size": 4, "bits": 4}),
    Case("medium, 2 rows, 16 bits", MEDIUM, 120, {"batch_size": 2, "bits": 16}),
)
LONG = (
    *QUICK,
    Case("medium, 8 rows, 16 bits", MEDIUM, 60, {"batch_size": 8, "bits": 16}),
    Case("medium, 16 rows, 16 bits", MEDIUM, 60, {"batch_size": 16, "bits": 16}),
    Case("medium, 4 rows, checkpointing", MEDIUM, 120, {"batch_size": 4, "gradient_checkpointing": True}),
    Case("large, 1 row, 4 bits", LARGE, 200, {"batch_size": 1, "bits": 4}),
    Case("large, 4 rows, 16 bits", LARGE, 100, {"batch_size": 4, "bits": 16}),
    Case("large, 4 rows, rank 128", LARGE, 60, {"batch_size": 4, "bits": 16, "lora_rank": 128}),
    Case("medium, 2 rows, all weights", MEDIUM, 100, {"batch_size": 2, "tuning": "full"}),
)


class Bench:
    def __init__(self, folder: Path, *, seed: int, steps: int) -> None:
        self._folder, self._dice, self._steps = folder, random.Random(seed), steps  # noqa: S311
        self._settings = replace(step_settings(load_settings()), cache_dir=folder / "cache")

    def run(self, case: Case) -> dict[str, Any]:
        """Prepare and train one case.

        Returns:
            what was estimated, and what came out.
        """
        base = self._folder / llama.name_of(case.shape)
        if not base.exists():
            llama.write(case.shape, base)
        rows = self._rows(case)
        params = {
            "base_model": "random", "training_file": "file-1", "name": "x", "max_steps": self._steps,
            "gradient_accumulation_steps": 1, **case.params,
        }  # fmt: skip
        ran = list(self._steps_of(case, base, rows, params))
        (prepared, _), (trained, seconds) = ran
        return {
            "case": case.name,
            "parameters": shape_of(base).parameters,
            "hyperparameters": trained["hyperparameters"],
            "estimated_bytes": prepared["estimate"]["foretold"]["peak_bytes"],
            "peak_bytes": trained["peak_memory_bytes"],
            "estimated_seconds": prepared["estimate"]["foretold"]["train_seconds"],
            "seconds": seconds,
            "tokens": trained["trained_tokens"],
            "tokens_per_second": trained["tokens_per_second"],
            "base": str(base),
        }

    def _steps_of(
        self, case: Case, base: Path, rows: Path, params: dict[str, Any]
    ) -> Iterator[tuple[dict[str, Any], float]]:
        work = Path(tempfile.mkdtemp(dir=self._folder))
        results: dict[str, dict[str, Any]] = {}
        for step in ("prepare", "train"):
            folder = work / step
            folder.mkdir()
            step_input = StepInput(
                job_id="job-bench",
                kind="fine_tune",
                step=step,
                attempt=1,
                params=PARAMS["fine_tune"].model_validate(params).model_dump(mode="json"),
                folder=folder,
                settings=self._settings,
                step_folders={name: work / name for name in results},
                results=dict(results),
                files={"file-1": FileInput(rows, rows.name, rows.stat().st_size)},
                base=BaseWeights("random", "folder", str(base)),
            )
            results[step], seconds = _in_child(step_input)
            yield results[step], seconds
        shutil.rmtree(work)

    def _rows(self, case: Case) -> Path:
        """Questions and answers of lognormal length, as conversations have."""
        path = self._folder / f"{case.name}.csv"
        with path.open("w") as file:
            file.write("question,answer\n")
            for _ in range(self._steps * case.params["batch_size"]):
                count = max(8, int(case.words * self._dice.lognormvariate(0, 0.5)))
                said = " ".join(self._dice.choices(WORDS, k=count))
                file.write(f"{said[: len(said) // 3]},{said[len(said) // 3 :]}\n")
        return path


def _in_child(step_input: StepInput) -> tuple[dict[str, Any], float]:
    """Run a step as a worker does. Returns its result, and how long it took."""
    log = step_input.folder.parent / f"{step_input.step}.log"
    began, result = time.monotonic(), None
    child = Child(
        f"worker.steps.{step_input.step}",
        step_input,
        deadline=host_seconds() + LIMIT_SECONDS,
        marker=f"bench/{step_input.step}/1",
        log_path=log,
        environment={},
    )
    while child.exit is None:
        for message in child.listen(1.0):
            result = message["result"] if message["type"] == "result" else result
    if result is None:
        raise StepFailed(f"{step_input.step} ended with {child.exit}: {child.tail[-2000:]}")
    return result, time.monotonic() - began


def _after_one(rows: list[dict[str, Any]]) -> list[float]:
    """Each job's time, as each other one would have foretold it: by how much that was wrong, at least 1."""
    errors = []
    for known in rows:
        finished = Finished(
            device=None,
            parameters=known["parameters"],
            hyperparameters=known["hyperparameters"],
            tokens=known["tokens"],
            tokens_per_second=known["tokens_per_second"],
            peak_bytes=known["peak_bytes"],
            seconds={"train": known["seconds"]},
            foretold={},
        )
        for row in rows:
            if row is known:
                continue
            told = duration(
                shape_of(Path(row["base"])),
                row["hyperparameters"],
                tokens=row["tokens"],
                machine=CPU,
                threads=2,
                finished=[finished],
            ).seconds["train"]
            errors.append(max(told / row["seconds"], row["seconds"] / told))
    return errors


def _goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    memory = [abs(row["estimated_bytes"] / row["peak_bytes"] - 1) for row in rows]
    after = statistics.median(_after_one(rows))
    return [
        {
            "what": "peak RAM of the training child, the worst of the shapes",
            "result": f"{100 * max(memory):.0f} % off",
            "goal": f"at most {100 * MEMORY_GOAL:.0f} % off",
            "met": max(memory) <= MEMORY_GOAL,
        },
        {
            "what": "time of training, foretold by one other finished job, median",
            "result": f"wrong by a factor of {after:.2f}",
            "goal": f"at most {TIME_GOAL}",
            "met": after <= TIME_GOAL,
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two shapes, in about two minutes")
    parser.add_argument("--seed", type=int, default=1, help="of the rows")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lathe-estimate-") as folder:
        bench = Bench(Path(folder), seed=options.seed, steps=4 if options.quick else 8)
        rows = []
        for case in QUICK if options.quick else LONG:
            rows.append(bench.run(case))
            if not options.json:
                _show(rows[-1])
        goals = _goals(rows)
    if options.json:
        shown = [{name: value for name, value in row.items() if name != "base"} for row in rows]
        print(json.dumps({"rows": shown, "goals": goals}, indent=1))
    else:
        show_goals(goals)
    return 0 if all(goal["met"] for goal in goals) else 1


def _show(row: dict[str, Any]) -> None:
    peak, told = row["peak_bytes"] / 1e6, row["estimated_bytes"] / 1e6
    print(
        f"{row['case']:32} {row['parameters'] / 1e6:6.1f} M  peak {peak:6.0f} MB, estimated {told:6.0f} "
        f"({told / peak:.2f}×)  {row['seconds']:5.0f} s, estimated {row['estimated_seconds']:5.0f}, "
        f"{row['tokens_per_second']:.0f} tokens/s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
