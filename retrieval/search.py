"""Search in collections: by vectors (`nearest`) and by words (`full_text`), fused by reciprocal rank."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from db.models import Collection
from retrieval.diversity import diversify
from retrieval.full_text import FullText
from retrieval.fusion import fuse
from retrieval.nearest import VectorSearch
from retrieval.passages import ChunkOfHit, DocumentOfHit, passages, similarities_of
from retrieval.statements import Statements

# What each list gives to the fusion; a passage beyond is in no other list's first ten, either.
CANDIDATES = 100

Ranked = tuple[float, float, int]  # score, similarity, a chunk's id


@dataclass(frozen=True)
class Query:
    """Args:
    weight: what its lists count against those of other queries.
    """

    text: str
    vector: list[float]
    weight: float = 1.0


@dataclass(frozen=True)
class Weights:
    """What each list counts; a list of weight 0 is not made. The default was tuned with `RANK_CONSTANT`."""

    vector: float = 1.5
    words: float = 1.0


@dataclass(frozen=True)
class Ranking:
    """How hits are ordered, and which are left out.

    Args:
        min_similarity: what a hit's cosine must be at least.
        diversity: above 0, up to 1, hits that resemble those before them come later; `score` stays.
    """

    weights: Weights = Weights()
    min_similarity: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True)
class Hit:
    """Args:
    score: what hits are ordered by, 0 to 1.
    similarity: cosine, 0 to 1.
    """

    chunk: ChunkOfHit
    document: DocumentOfHit
    score: float
    similarity: float


@dataclass
class Found:
    """Hits, the best first, and how they came about.

    Args:
        queries: the texts that were searched for.
        used: what was done, in this order, and `seconds` how long each of it took.
        indexing: how many documents are still being read, and were not searched.
        notices: what was asked for and could not be done, for people.
    """

    hits: list[Hit] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    indexing: int = 0
    notices: list[str] = field(default_factory=list)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long `name` takes, a second time added to the first, and that it is used, once done."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._took(name, time.monotonic() - started)
        if name not in self.used:
            self.used.append(name)

    def note(self, name: str, seconds: float) -> None:
        """Note that `name` was used, and took so long."""
        self._took(name, seconds)
        if name not in self.used:
            self.used.append(name)

    def _took(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 6)


def search(
    session: Session,
    *,
    project_id: str,
    collections: Sequence[Collection],
    queries: Sequence[Query],
    limit: int,
    where: ColumnElement[bool] | None = None,
    ranking: Ranking = Ranking(),
) -> Found:
    """Find the passages that fit best to any of the queries.

    Args:
        collections: all of the model that embedded the queries, or still empty.
        where: on `Document`, of the collections' documents that are searched.
    """
    found, weights = Found(queries=[query.text for query in queries]), ranking.weights
    fused = len(queries) * ((weights.vector > 0) + (weights.words > 0)) > 1
    # The nearest are the best if nothing else orders them.
    by_vector_alone = not fused and weights.vector > 0 and ranking.diversity == 0
    most = limit if by_vector_alone else CANDIDATES
    statements = Statements(session)
    vectors = VectorSearch(
        statements,
        project_id=project_id,
        collections=collections,
        where=where,
        most=most,
        note=found.note,
        reads_passages=by_vector_alone,
    )
    words = (
        FullText(session, project_id=project_id, collections=collections, where=where, most=most)
        if weights.words > 0
        else None
    )
    lists: list[tuple[float, list[int]]] = []
    for query in queries:
        if weights.vector > 0:
            lists.append((weights.vector * query.weight, vectors.nearest(query.vector)))
        if words is not None:
            with found.timed("full_text"):
                lists.append((weights.words * query.weight, words.matching(query.text)))
    if words is not None and words.is_bounded:
        found.used.append("full_text_bounded")
    by_rank = fused or not weights.vector  # words alone are no matter of the cosine
    with found.timed("rrf") if fused else nullcontext():
        scores = fuse(lists)
    # Of several queries another than the one that found a chunk may be nearer to it.
    known = vectors.distances if len(queries) == 1 else {}
    similarities = {chunk_id: max(0.0, 1.0 - known[chunk_id]) for chunk_id in scores if chunk_id in known}
    unknown = [chunk_id for chunk_id in scores if chunk_id not in known]
    similarities |= similarities_of(statements, unknown, [query.vector for query in queries])
    ranked = sorted(
        (
            (scores[chunk_id] if by_rank else similarity, similarity, chunk_id)
            for chunk_id, similarity in similarities.items()
            if similarity >= ranking.min_similarity
        ),
        key=lambda row: (-row[0], -row[1], row[2]),
    )
    if ranking.diversity > 0:
        with found.timed("mmr"):
            ranked = _diversified(session, ranked[:CANDIDATES], limit, ranking.diversity)
    read = vectors.passages or passages(statements, [chunk_id for _, _, chunk_id in ranked[:limit]])
    found.hits = [
        Hit(*read[chunk_id], score, similarity)
        for score, similarity, chunk_id in ranked[:limit]
        if chunk_id in read  # or else it was deleted just now
    ]
    return found


def _diversified(session: Session, ranked: list[Ranked], limit: int, diversity: float) -> list[Ranked]:
    rows = {chunk_id: (score, similarity, chunk_id) for score, similarity, chunk_id in ranked}
    relevance = [(chunk_id, score) for score, _, chunk_id in ranked]
    return [rows[chunk_id] for chunk_id in diversify(session, relevance, limit=limit, diversity=diversity)]
