"""The rewards that are always there: functions as an operator writes them, too."""

from typing import Any

from training_data.rows import expected_answer
from worker.steps.answer_scores import is_exact, plain

Completions = list[list[dict[str, str]]]


def exact_match(completions: Completions, answer: list[Any], **others: Any) -> list[float]:
    """1 for an answer that says what its row's column `answer` says, but for white space; else 0."""
    return [
        float(is_exact(_expected(wanted), said[0]["content"]))
        for said, wanted in zip(completions, answer, strict=True)
    ]


def contains_answer(completions: Completions, answer: list[Any], **others: Any) -> list[float]:
    """1 for an answer in which the row's column `answer` stands, in capitals or small letters; else 0."""
    return [
        float(plain(_expected(wanted)).casefold() in plain(said[0]["content"]).casefold())
        for said, wanted in zip(completions, answer, strict=True)
    ]


def brevity(completion_ids: list[list[int]], max_completion_length: int, **others: Any) -> list[float]:
    """From 1 for an answer of no tokens down to 0 for one of max_completion_length: beside other rewards."""
    return [1 - len(ids) / max_completion_length for ids in completion_ids]


def _expected(answer: Any) -> str:
    # `prepare` has seen that each row has one.
    return expected_answer({"answer": answer}) or ""
