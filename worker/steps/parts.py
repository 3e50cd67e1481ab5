"""Which rows are trained on, which are held out, and which are left out: split, doubles, leaks, weights.

Whatever of this is done to a row is told.
"""

import random
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

from db.errors import InvalidInput
from db.params.data import DataParams
from training_data.encoded_rows import read_records, tokens_of
from training_data.snapshots import Snapshot
from training_data.splits import split_rows
from worker.step import Step
from worker.steps.dataset import Dataset

NAMES = ("train", "validation", "test")
TRAIN, VALIDATION, TEST, LEFT_OUT = range(4)
ASKED_IN = {TRAIN: "to train on", VALIDATION: "of the validation"}
EXAMPLES = 3
MOST_LINES = 1000  # in an event's data


@dataclass
class Parts:
    """Args:
    of: of each row its part.
    copies: how often each row is trained on.
    doubles: rows that say what an earlier one says.
    leaked: by part, rows that were to be held out and ask what a row to train on asks.
    """

    dataset: Dataset
    of: bytearray
    copies: bytearray
    doubles: list[int] = field(default_factory=list)
    leaked: dict[str, list[int]] = field(default_factory=dict)

    def rows(self, part: int) -> list[int]:
        return [row for row, its in enumerate(self.of) if its == part]

    def counts(self) -> dict[str, int]:
        """How many rows each part has, those to train on as often as they come."""
        held = {name: self.of.count(part) for part, name in enumerate(NAMES)}
        return {**held, "train": sum(compress(self.copies, (its == TRAIN for its in self.of)))}

    def train_tokens(self) -> int:
        return sum(self.dataset.tokens[row] * self.copies[row] for row in self.rows(TRAIN))

    def write(self, folder: Path) -> None:
        """Leave train.jsonl, validation.jsonl and test.jsonl, each with its tokens, in place of all rows."""
        paths = [folder / f"{name}.jsonl" for name in NAMES]
        with ExitStack() as opened:
            outs = [
                (opened.enter_context(path.open("wb")), opened.enter_context(tokens_of(path).open("wb")))
                for path in paths
            ]
            spool = opened.enter_context(self.dataset.path.open("rb"))
            tokens = opened.enter_context(tokens_of(self.dataset.path).open("rb"))
            for row, (line, record) in enumerate(zip(spool, read_records(tokens), strict=True)):
                if self.of[row] == LEFT_OUT:
                    continue
                times = self.copies[row] if self.of[row] == TRAIN else 1
                for out, content in zip(outs[self.of[row]], (line, record), strict=True):
                    out.write(content * times)
        self.dataset.remove()


def part_rows(
    step: Step, dataset: Dataset, params: DataParams, snapshot: Snapshot | None, seed: int
) -> Parts:
    """Settle what becomes of each row.

    Raises:
        InvalidInput: there are too few rows for the split, a fold has none, or rows that are held out are
            trained on too and `leaks` refuses that.
    """
    parts = Parts(dataset, bytearray(len(dataset)), bytearray(b"\1") * len(dataset))
    for row in range(len(dataset)):
        parts.of[row] = VALIDATION if dataset.sources[dataset.source[row]].given.held_out else TRAIN
    _doubles(step, parts, drop=params.dedupe)
    if snapshot is not None and params.fold_column is not None:
        _split_by_fold(parts, snapshot, params)
    elif params.validation_file is None:
        _split(parts, params.train_size, seed)
    _leaks(step, parts, params)
    _weigh(step, parts, seed)
    return parts


def _doubles(step: Step, parts: Parts, *, drop: bool) -> None:
    dataset = parts.dataset
    seen: set[int] = set()
    doubles = parts.doubles
    for row in parts.rows(TRAIN):
        if dataset.said[row] in seen:
            doubles.append(row)
        seen.add(dataset.said[row])
    if not doubles:
        return
    fate = "they are left out" if drop else "they are kept; dedupe leaves them out"
    step.event(
        f"{len(doubles)} rows say what an earlier row says ({dataset.name(doubles)}); {fate}.",
        level="warn",
        duplicates=len(doubles),
        lines=dataset.places(doubles[:MOST_LINES]),
    )
    if drop:
        for row in doubles:
            parts.of[row] = LEFT_OUT


def _split(parts: Parts, train_size: float | None, seed: int) -> None:
    """Split each file for itself, so that each is held out in the same share."""
    dataset = parts.dataset
    for index in range(len(dataset.sources)):
        rows = [row for row in parts.rows(TRAIN) if dataset.source[row] == index]
        if len(rows) < 2 <= len(dataset.sources):
            continue  # of one row nothing can be held out, and of the other files there is
        split = split_rows(len(rows), train_size, seed + index)
        for part, chosen in ((VALIDATION, split.validation), (TEST, split.test)):
            for position in chosen:
                parts.of[rows[position]] = part


def _split_by_fold(parts: Parts, snapshot: Snapshot, params: DataParams) -> None:
    """Hold out the rows of the folds that are named.

    Raises:
        InvalidInput: a fold has no row, or no row is left to train on.
    """
    there = sorted(set(snapshot.folds))
    held_out = dict.fromkeys(params.validation_folds, VALIDATION) | dict.fromkeys(params.test_folds, TEST)
    for fold, part in held_out.items():
        if fold not in there:
            raise InvalidInput(
                f"{NAMES[part]}_folds: no row has {params.fold_column} {fold!r}. There are: "
                f"{', '.join(there)[:500]}.",
                param=f"{NAMES[part]}_folds",
            )
    for row in parts.rows(TRAIN):
        parts.of[row] = held_out.get(snapshot.folds[parts.dataset.line[row] - 1], TRAIN)
    if TRAIN not in parts.of:
        raise InvalidInput("Every fold is held out: there is no row to train on.", param="validation_folds")


def _leaks(step: Step, parts: Parts, params: DataParams) -> None:
    """Rows that are held out and ask what a row asks that is trained on, or that weights are chosen by."""
    drawn = params.validation_file is None and params.fold_column is None
    for part, known_by in ((VALIDATION, TRAIN), (TEST, TRAIN), (TEST, VALIDATION)):
        dataset, held = parts.dataset, parts.rows(part)
        known = {dataset.asked[row] for row in parts.rows(known_by)}
        leaked = [row for row in held if dataset.asked[row] in known]
        if not leaked:
            continue
        parts.leaked[NAMES[part]] = sorted({*parts.leaked.get(NAMES[part], []), *leaked})
        what = (
            f"{len(leaked)} of {len(held)} rows of the {NAMES[part]} ask what a row {ASKED_IN[known_by]} "
            f"asks ({dataset.name(leaked)})"
        )
        if params.leaks == "refuse":
            raise InvalidInput(f"{what}: take them out of one of the two.", param="leaks", code="leaks")
        if params.leaks == "warn":
            fate = "their figures say less than they seem to. leaks: move takes them out of it"
        else:
            fate = _move(parts, leaked, known_by if drawn else LEFT_OUT)
            if len(leaked) == len(held):
                raise InvalidInput(f"{what}: none would be left in it.", param="leaks", code="leaks")
        step.event(
            f"{what}: {fate}.",
            level="warn",
            leaks=len(leaked),
            part=NAMES[part],
            lines=dataset.places(leaked[:MOST_LINES]),
        )


def _move(parts: Parts, leaked: Iterable[int], to: int) -> str:
    """Take rows out of what is held out: into another part only where we had drawn which are held out."""
    for row in leaked:
        parts.of[row] = to
    return {TRAIN: "they are trained on", VALIDATION: "they are validated on"}.get(to, "they are left out")


def _weigh(step: Step, parts: Parts, seed: int) -> None:
    """Take the rows of each file as often as its weight says, a part of them by chance."""
    dataset = parts.dataset
    for index, source in enumerate(dataset.sources):
        weight = source.given.weight
        if weight == 1 or source.given.held_out:
            continue
        rows = [row for row in parts.rows(TRAIN) if dataset.source[row] == index]
        whole = int(weight)
        once_more = round(len(rows) * (weight - whole))
        chosen = set(random.Random(seed + index).sample(rows, once_more))  # noqa: S311 - reproducible
        for row in rows:
            parts.copies[row] = whole + (row in chosen)
            if not parts.copies[row]:
                parts.of[row] = LEFT_OUT
        step.event(
            f"{source.given.name} has the weight {weight:g}: its {len(rows)} rows to train on are "
            f"taken {len(rows) * whole + once_more} times in all.",
            rows=len(rows),
            taken=len(rows) * whole + once_more,
        )
    if TRAIN not in parts.of:
        raise InvalidInput("The weights leave no row to train on: raise them.", param="training_files")
