"""Which passages go to a model, and in what form: those that fit best, no text twice, each with its place."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from retrieval.search import Hit


@dataclass(frozen=True)
class Passage:
    """Characters `start` to before `end` of a document's text, which are `text`."""

    collection_id: str
    document_id: str
    file_id: str
    filename: str
    text: str
    start: int
    end: int
    first_page: int | None
    last_page: int | None
    page_label: str | None
    section: str | None
    score: float
    similarity: float
    attributes: dict[str, Any] = field(default_factory=dict, compare=False)  # of the document


def passage_of(hit: Hit) -> Passage:
    chunk, document = hit.chunk, hit.document
    labels = document.page_labels or []
    return Passage(
        collection_id=document.collection_id,
        document_id=document.id,
        file_id=document.file_id,
        filename=document.filename,
        text=chunk.text,
        start=chunk.start_char,
        end=chunk.end_char,
        first_page=chunk.first_page,
        last_page=chunk.last_page,
        page_label=labels[chunk.first_page - 1] if labels and chunk.first_page else None,
        section=chunk.section,
        score=hit.score,
        similarity=hit.similarity,
        attributes=document.attributes,
    )


def distinct(passages: Iterable[Passage]) -> list[Passage]:
    """The first of each text: the same file may stand in several collections."""
    first: dict[str, Passage] = {}
    for passage in passages:
        first.setdefault(passage.text, passage)
    return list(first.values())


def fitting(costs: Sequence[int], room: int) -> list[int]:
    """Which to take: from the first on each that still fits beside those before it.

    A later, shorter one may fit where a longer did not.
    """
    taken = []
    for number, cost in enumerate(costs):
        if cost <= room:
            room -= cost
            taken.append(number)
    return taken


def joined(passages: Sequence[Passage]) -> list[Passage]:
    """Make one of those that overlap or touch in the same document, in the place of the best of them."""
    ranks = {passage: rank for rank, passage in reversed(list(enumerate(passages)))}
    by_place = sorted(ranks, key=lambda passage: (passage.document_id, passage.start, -passage.end))
    found: list[tuple[int, Passage]] = []
    for _, group in groupby(by_place, key=lambda passage: passage.document_id):
        own: list[tuple[int, Passage]] = []
        for passage in group:
            if own and _continues(own[-1][1], passage):
                rank, before = own.pop()
                own.append((min(rank, ranks[passage]), _join(before, passage)))
            else:
                own.append((ranks[passage], passage))
        found += own
    return [passage for _, passage in sorted(found, key=lambda row: row[0])]


def _continues(one: Passage, other: Passage) -> bool:
    """Whether `other`, which begins no earlier, begins within `one` or where it ends."""
    if other.start > one.end:
        return False
    shared = min(one.end, other.end) - other.start
    return one.text[other.start - one.start :][:shared] == other.text[:shared]


def _join(one: Passage, other: Passage) -> Passage:
    best = max(one, other, key=lambda passage: passage.score)
    similarity = max(one.similarity, other.similarity)
    whole = replace(one, score=best.score, similarity=similarity)
    if other.end <= one.end:
        return whole
    text = one.text + other.text[one.end - other.start :]
    return replace(whole, text=text, end=other.end, last_page=other.last_page)


def shortened(passage: Passage, characters: int, page_starts: Sequence[int]) -> Passage:
    """The beginning of a passage, up to the end of a word where there is one.

    Args:
        page_starts: the character at which each page of its document begins.
    """
    text = passage.text[:characters]
    if len(text) < len(passage.text) and (space := text.rfind(" ")) > 0:
        text = text[:space]
    end = passage.start + len(text)
    last_page = passage.last_page
    if page_starts and passage.first_page is not None:
        last_page = max(passage.first_page, sum(start < end for start in page_starts))
    return replace(passage, text=text, end=end, last_page=last_page)
