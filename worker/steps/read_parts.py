"""The rows of a fine-tune from its files to its parts, and what is odd about them: the same for a training
and for a look at its data, so that the two cannot disagree.
"""

import secrets
from dataclasses import dataclass
from typing import Any

from db.errors import InvalidInput
from db.params.data import DataParams
from training_data.snapshots import Snapshot
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.dataset import KEEPS_FIELDS, Dataset, SystemTurns, files_of, read_dataset
from worker.steps.parts import MOST_LINES, NAMES, Parts, part_rows
from worker.steps.source_rows import read_snapshot

PLACES_NAMED = 5


@dataclass(frozen=True)
class ReadParts:
    """Args:
    snapshot: of the rows of a SQL source, when they came from one.
    """

    parts: Parts
    system: SystemTurns
    seed: int
    snapshot: Snapshot | None


def read_parts(
    step: Step,
    params: DataParams,
    tokenizer: ChatTokenizer,
    *,
    method: str | None,
    assistant_only: bool,
    every: int = 1,
) -> ReadParts:
    """Read, check and split all rows.

    Args:
        method: None: whatever the rows can be learnt by.
        every: read only every so manieth row of what is trained on.
    Raises:
        InvalidInput: rows are wrong, or cannot be split as asked; the message names line and fix.
    """
    seed = params.seed if params.seed != -1 else secrets.randbelow(2**31)
    if params.seed == -1:
        step.event(f"Drew the seed {seed}.", seed=seed)
    system = SystemTurns(tokenizer, params)
    snapshot = read_snapshot(step, params.fold_column)
    dataset = read_dataset(
        step,
        files_of(step, params, snapshot),
        tokenizer,
        system,
        method=method,
        assistant_only=assistant_only,
        fold_column=params.fold_column,
        every=every,
    )
    _tell_census(step, dataset)
    return ReadParts(part_rows(step, dataset, params, snapshot, seed), system, seed, snapshot)


def files_read(dataset: Dataset) -> list[dict[str, Any]]:
    """Which files the rows came from, and how each was read."""
    return [
        {
            "filename": source.given.name,
            "rows": source.rows,
            "kind": source.detected.kind,
            "format": source.detected.shape.name,
            "columns": source.detected.columns,
            "encoding": source.detected.encoding or None,
            "weight": source.given.weight,
        }
        for source in dataset.sources
    ]


def tell_cut(
    step: Step, parts: Parts, max_length: int, context: int, *, answer: int = 0
) -> dict[str, dict[str, list[int]]]:
    """Name the rows that are longer than max_length, by part and file.

    Args:
        answer: tokens of it that are kept for what the model answers to prompts.
    Raises:
        InvalidInput: max_length is more than the base model was made for.
    """
    if max_length > context:
        raise InvalidInput(
            f"max_length {max_length} is more than the {context} tokens of the base model.",
            param="max_length",
        )
    dataset = parts.dataset
    if dataset.method == "pretraining":  # whose texts are cut into pieces, and learnt whole
        return {name: {} for name in NAMES}
    by_part = {
        name: [row for row in parts.rows(part) if dataset.longest[row] > max_length - answer]
        for part, name in enumerate(NAMES)
    }
    rows = sorted(row for found in by_part.values() for row in found)
    answers = sum(dataset.learnt_to[row] > max_length for row in rows)
    if rows and dataset.method in KEEPS_FIELDS:
        step.event(
            f"{len(rows)} prompts are longer than max_length {max_length} leaves beside an answer of "
            f"{answer} tokens, and are left out: {dataset.name(rows)}. Raise max_length, shorten them, or "
            "lower max_completion_length.",
            level="warn",
            max_length=max_length,
            lines=dataset.places(rows[:MOST_LINES]),
        )
    elif rows:
        step.event(
            f"{len(rows)} rows are longer than max_length {max_length} and will be cut, their end being "
            f"lost to training, and of {answers} the answer's: {dataset.name(rows)}. Raise max_length or "
            "shorten them.",
            level="warn",
            max_length=max_length,
            answers_cut=answers,
            lines=dataset.places(rows[:MOST_LINES]),
        )
    return {name: dataset.places(found) for name, found in by_part.items()}


def _tell_census(step: Step, dataset: Dataset) -> None:
    census = dataset.census
    if census.unweighted and dataset.assistant_only:
        step.event(
            f"{census.unweighted} answers have weight 0: they are read, and not learnt.",
            unweighted=census.unweighted,
        )
    elif census.unweighted:
        step.event(
            f"{census.unweighted} answers have weight 0, and are learnt all the same: assistant_only_loss is "
            "false.",
            level="warn",
            unweighted=census.unweighted,
        )
    for places, what in (
        (census.nothing_words, "rows have an answer that is a word for nothing, such as nan or null"),
        (census.same_role_twice, "rows have two turns of one role after each other"),
    ):
        if places:
            more = f" and {len(places) - PLACES_NAMED} more" if len(places) > PLACES_NAMED else ""
            step.event(
                f"{len(places)} {what}: {', '.join(places[:PLACES_NAMED])}{more}.",
                level="warn",
                places=places,
            )
