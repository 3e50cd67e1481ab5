"""What reading rows once saves the second job: `python -m bench.prepared [--quick] [--json]`.

Rows of lognormal length, as conversations have, are prepared by the step itself, by a second job that takes
them as they were kept, and are given to the trainer with and without their tokens. CPU-seconds of this
process; every file that the two jobs leave is compared. A missed goal is exit status 1.
"""

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench.random_llama as llama
from bench.goals import run_bench, show_goals
from db.disk import file_sha256
from db.kinds import PARAMS
from db.settings import load_settings
from training_data.encoded_rows import tokens_of
from training_data.formats import RowReader, detect_format
from training_data.tokens import ChatTokenizer, encode_row
from worker.step import BaseWeights, FileInput, Step, StepInput
from worker.step_input import step_settings
from worker.steps import prepare
from worker.steps.methods import METHODS
from worker.steps.runtime import prepare_runtime

SIZES = {"quick": (2_000,), "full": (10_000, 100_000)}  # rows
MEDIAN_WORDS = 60
SHAPE = llama.Shape(hidden=64, layers=1, intermediate=128, heads=2)
GOALS = {"again": 0.2, "trainer": 0.35}  # of the CPU-seconds without
JSON = dict[str, Any]


class Bench:
    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._dice = folder, random.Random(seed)  # noqa: S311
        self._settings = step_settings(load_settings())
        self._base = folder / "base"
        llama.write(SHAPE, self._base)

    def measure(self, rows: int) -> JSON:
        """CPU-seconds of reading `rows` rows in each way."""
        data = self._rows(rows)
        first, first_seconds = self._prepare(data)
        second, second_seconds = self._prepare(data)
        same = _hashes(first) == _hashes(second)
        tokenizer = ChatTokenizer(first / "tokenizer")
        parsing, encoding = _parts(data, tokenizer)
        with_tokens = self._given_to_the_trainer(second, tokenizer)
        tokens_of(first / "train.jsonl").unlink()
        encoded = self._given_to_the_trainer(first, tokenizer)
        return {
            "rows": rows,
            "bytes": data.stat().st_size,
            "token_bytes": tokens_of(second / "train.jsonl").stat().st_size,
            "first_seconds": first_seconds,
            "of_it_parsing": parsing,
            "of_it_rendering_and_encoding": encoding,
            "again_seconds": second_seconds,
            "trainer_encoding_seconds": encoded,
            "trainer_seconds": with_tokens,
            "same": same,
        }

    def _prepare(self, data: Path) -> tuple[Path, float]:
        work = Path(tempfile.mkdtemp(dir=self._folder))
        params = {"base_model": "random", "training_file": "file-1", "name": "x", "train_size": 0.98}
        step_input = StepInput(
            job_id="job-bench",
            kind="fine_tune",
            step="prepare",
            attempt=1,
            params=PARAMS["fine_tune"].model_validate(params).model_dump(mode="json"),
            folder=work,
            settings=self._settings,
            files={"file-1": FileInput(data, data.name, data.stat().st_size)},
            base=BaseWeights("random", "folder", str(self._base)),
            prepared=self._folder / "prepared",
        )
        step = Step(step_input, lambda message: None)
        return work, _seconds(lambda: prepare.run(step))

    @staticmethod
    def _given_to_the_trainer(folder: Path, tokenizer: ChatTokenizer) -> float:
        chosen = {"max_length": 1024, "assistant_only_loss": True}
        rows = METHODS["supervised"].rows
        return _seconds(lambda: list(rows(folder / "train.jsonl", tokenizer, chosen)))

    def _rows(self, count: int) -> Path:
        path = self._folder / f"{count}.csv"
        with path.open("w") as file:
            file.write("question,answer\n")
            for number in range(count):
                words = max(8, int(MEDIAN_WORDS * self._dice.lognormvariate(0, 0.6)))
                said = " ".join(_words(self._dice, words))
                file.write(f"{number}: {said[: len(said) // 3]},{said[len(said) // 3 :]}\n")
        return path


def _words(dice: random.Random, count: int) -> Iterator[str]:
    for _ in range(count):
        yield "".join(dice.choices("etaoinshrdlucm", k=dice.randint(2, 9)))


def _parts(data: Path, tokenizer: ChatTokenizer) -> tuple[float, float]:
    """What parsing a file takes, and what rendering and encoding its rows takes."""
    rows: list[Any] = []
    reader = RowReader(detect_format(data, data.name))
    parsing = _seconds(lambda: rows.extend(reader))
    return parsing, _seconds(lambda: sum(len(encode_row(row, tokenizer)) for row in rows))


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return round(time.process_time() - began, 3)


def _hashes(folder: Path) -> dict[str, str]:
    """Of all but the report, which holds an estimate of the machine at that moment."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "report.json")
    return {str(path.relative_to(folder)): file_sha256(path) for path in paths}


def bench(*, quick: bool, seed: int) -> JSON:
    prepare_runtime(1)
    folder = Path(tempfile.mkdtemp(prefix="lathe-prepared-"))
    try:
        one = Bench(folder, seed)
        measured = [one.measure(rows) for rows in SIZES["quick" if quick else "full"]]
    finally:
        shutil.rmtree(folder)
    largest = measured[-1]
    return {
        "measured": measured,
        "goals": [_goal(largest, "again"), _goal(largest, "trainer"), _same(measured)],
    }


def _goal(row: JSON, name: str) -> JSON:
    what, without = {
        "again": ("a second job's reading, of the first's CPU-seconds", "first_seconds"),
        "trainer": ("rows for the trainer, of those encoded anew", "trainer_encoding_seconds"),
    }[name]
    share = row[f"{name}_seconds"] / row[without]
    return {"what": what, "result": round(share, 3), "goal": f"≤ {GOALS[name]}", "met": share <= GOALS[name]}


def _same(measured: list[JSON]) -> JSON:
    same = all(row["same"] for row in measured)
    return {"what": "all files of both jobs", "result": "the same" if same else "differ", "goal": "the same",
            "met": same}  # fmt: skip


def show(result: JSON) -> None:
    for row in result["measured"]:
        print(
            f"{row['rows']:,} rows, {row['bytes'] / 1e6:.1f} MB: read in {row['first_seconds']:.2f} CPU-s "
            f"(parsing {row['of_it_parsing']:.2f}, rendering and encoding "
            f"{row['of_it_rendering_and_encoding']:.2f}), by a second job in {row['again_seconds']:.2f}; for "
            f"the trainer {row['trainer_encoding_seconds']:.2f} encoded, {row['trainer_seconds']:.2f} with "
            f"{row['token_bytes'] / 1e6:.1f} MB of tokens"
        )
    show_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(run_bench(__doc__, bench, show, quick="some seconds, for a look", seed="of the rows"))
