"""Rows that `prepare` has left, as tokens and labels: what a trainer reads.

They are made here and not by trl: so any chat template can be trained on its answers only, and what is cut
is known before it is cut.
"""

from array import array
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.method_rows import LABEL, LENGTH, TokenRow
from worker.steps.methods import Method


def encode_rows(
    path: Path,
    method: Method,
    tokenizer: ChatTokenizer,
    chosen: dict[str, Any],
    step: Step,
    *,
    required: bool = True,
) -> list[TokenRow]:
    """Read prepared rows as the method takes them, cut at max_length; `prepare` has told which are cut.

    Raises:
        InvalidInput: no row keeps an answer within max_length.
    """
    encoded = list(method.rows(path, tokenizer, chosen))
    kept = [row for row in encoded if row is not None]
    left_out = len(encoded) - len(kept)
    if left_out:
        step.event(
            f"{left_out} rows of {path.name} have no answer left within max_length "
            f"{chosen['max_length']} and are left out.",
            level="warn",
            left_out=left_out,
        )
    if required and not kept:
        raise _nothing_to_learn(chosen)
    return kept


def see_that_there_is_something_to_learn(
    path: Path, method: Method, tokenizer: ChatTokenizer, chosen: dict[str, Any]
) -> None:
    """Read prepared rows up to the first that a training can learn from.

    Raises:
        InvalidInput: there is none, as `encode_rows` would find.
    """
    if all(row is None for row in method.rows(path, tokenizer, chosen)):
        raise _nothing_to_learn(chosen)


def _nothing_to_learn(chosen: dict[str, Any]) -> InvalidInput:
    return InvalidInput(
        f"No row has a token to learn within max_length {chosen['max_length']}: raise it.",
        param="max_length",
    )


def row_lengths(rows: list[TokenRow]) -> list[int]:
    """Tokens of each row; of a preference pair, of its longer conversation."""
    return [
        row[LENGTH][0]
        if LENGTH in row
        else sum(len(ids) for name, ids in row.items() if name.endswith("_ids"))
        for row in rows
    ]


def as_dataset(rows: list[TokenRow]) -> Any:
    import numpy
    from datasets import Dataset

    columns: dict[str, Any] = {
        name: [numpy.asarray(row[name]) if isinstance(row[name], array) else row[name] for row in rows]
        for name in rows[0]
    }
    for name, kind in ((LENGTH, int), (LABEL, bool)):
        if name in columns:
            columns[name] = [kind(values[0]) for values in columns[name]]
    return Dataset.from_dict(columns)


def padding_tokenizer(tokenizer: ChatTokenizer) -> Any:
    """The tokenizer in the form that trl asks for; it only pads."""
    from transformers import PreTrainedTokenizerFast

    end = tokenizer.special_tokens.get("eos_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.tokenizer,
        eos_token=end,
        pad_token=tokenizer.special_tokens.get("pad_token", end),
    )
