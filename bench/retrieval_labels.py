"""The labels: questions, and quotes of the texts that answer them.

A passage is right if it overlaps a quote. White space counts as one space: readers treat it differently.
Halves are by the hash of a text's name: what is tuned on the one has not seen the other's texts.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LABELS = Path(__file__).parent / "data" / "retrieval_questions.jsonl"
UNANSWERABLE = "unanswerable"
KINDS = ("paraphrase", "keywords", "identifier", "long", "typos", "two-part", UNANSWERABLE)
HALVES = ("tuning", "held-out")

Span = tuple[int, int]


@dataclass(frozen=True)
class Question:
    """Args:
    text: name of the text that answers it; None if none does.
    quotes: one for each part of the question.
    """

    question: str
    kind: str
    text: str | None
    quotes: tuple[str, ...] = ()

    @property
    def half(self) -> str:
        digest = hashlib.sha256((self.text or self.question).encode()).digest()
        return HALVES[digest[0] % 2]


def load_questions() -> list[Question]:
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Question(row["question"], row["kind"], row["text"], tuple(row["quotes"])) for row in rows]


def find_quote(quote: str, content: str) -> list[Span]:
    """Every place of a quote in a text."""
    pattern = r"\s+".join(map(re.escape, quote.split()))
    return [match.span() for match in re.finditer(pattern, content)]


def ranks_of(spans: Sequence[Sequence[Span]], passages: Sequence[Span]) -> list[int | None]:
    """For each quote the rank, from 1, of the first passage that overlaps a place of it.

    Args:
        spans: the places of each quote.
        passages: of the same text, the best first; those of other texts are empty spans.
    """
    return [
        next(
            (
                rank
                for rank, (start, end) in enumerate(passages, 1)
                if any(start < last and first < end for first, last in places)
            ),
            None,
        )
        for places in spans
    ]
