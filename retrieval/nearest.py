"""The chunks nearest to a vector: by a collection's index, exactly, or both together.

An index is asked for the nearest of all that it holds. A filter leaves holes in that: of the hundred nearest
perhaps one fits. So what few documents a filter leaves are compared exactly, and with many the index is gone
through for as long as it takes. What was loaded after the index, and collections without one, are compared
exactly in any case, so that a search always sees all that is there (`retrieval/vector_index.py`).
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    any_,
    bindparam,
    cast,
    func,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from db.models import Chunk, Collection, Document
from retrieval.passages import Passage, passage_in, with_passages
from retrieval.statements import Statements, Values, compiled, given_vector, written

EXACT, HNSW, HNSW_FILTERED = "vector_exact", "vector_hnsw", "vector_hnsw_filtered"
EMBEDDING: ColumnElement[Any] = Chunk.__table__.c.embedding
# What going on to one more fitting chunk of an index costs, in comparisons of an exact search: each step
# looks at the neighbours of several others.
COST_OF_A_STEP = 40.0
# How many an index is gone through for at least; so few are a matter of recall, not of speed.
CANDIDATES_OF_INDEX, CANDIDATES_OF_INDEX_MOST = 64, 1000
# The planner's guesses can be wrong by far: what an index costs, how many documents a filter leaves, how many
# chunks came after an id. By then it is decided how to look, and it is told what not to try.
BY_INDEX = ("enable_sort", "enable_seqscan")
BY_DOCUMENT = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")

COLLECTION_ID = bindparam("collection_id", type_=Text)
COLLECTION_IDS = bindparam("collection_ids", type_=ARRAY(Text))
INDEXED_THROUGH = cast(bindparam("indexed_through"), BigInteger)

Nearest = dict[int, float]  # the distance of each chunk
Build = Callable[[int], Select[Any]]  # a statement for vectors of so many dimensions


class Asked(NamedTuple):
    """A vector, as Postgres reads it."""

    text: str
    dimensions: int


class VectorSearch:
    """Finds the nearest chunks of some collections' documents.

    Args:
        where: on `Document`.
        most: how many are looked for.
        note: is told each way of searching that was used, with the seconds it took.
        reads_passages: whether `passages` will be asked for. Not with a filter, where the statement is built
            anew each time, and costs the more the more columns it has.
    """

    def __init__(
        self,
        session: Session,
        *,
        project_id: str,
        collections: Sequence[Collection],
        where: ColumnElement[bool] | None,
        most: int,
        note: Callable[[str, float], None],
        cost_of_a_step: float = COST_OF_A_STEP,
        reads_passages: bool = False,
        statements: Statements | None = None,
    ) -> None:
        self._session = session
        self._statements = statements or Statements(session)
        self._project_id = project_id
        self._where = where
        self._most = most
        self._note = note
        self._cost_of_a_step = cost_of_a_step
        self._reads_passages = reads_passages and where is None
        # Of what was found last.
        self.distances: Nearest = {}
        self.passages: dict[int, Passage] = {}
        self._by_index = [collection for collection in collections if collection.index_name is not None]
        if where is not None and self._by_index:
            self._by_index = self._worth_the_index(self._by_index, where)
        self._exactly = [collection for collection in collections if collection not in self._by_index]

    def nearest(self, vector: list[float]) -> list[int]:
        """The chunks nearest to the vector, the nearest first.

        The planner is left told what not to try: until the next of the `statements`.
        """
        found: Nearest = {}
        self.passages = {}
        asked = Asked(written(vector), len(vector))
        exactly = [collection.id for collection in self._exactly]
        for collection in self._by_index:
            scope = {"collection_id": collection.id, "indexed_through": collection.indexed_through}
            by_index = self._ask_index(asked, scope)
            found |= by_index
            # Fewer only where the index lost its way: among deleted chunks, or by a filter against the grain.
            if len(by_index) < self._most:
                exactly.append(collection.id)
            else:
                found |= self._look(_after_index, asked, scope, EXACT)
        if exactly:
            found |= self._compare_all(asked, {"collection_ids": exactly})
        self.distances = found
        return sorted(found, key=lambda chunk_id: (found[chunk_id], chunk_id))[: self._most]

    def _worth_the_index(
        self, collections: Sequence[Collection], where: ColumnElement[bool]
    ) -> list[Collection]:
        """Those of which the filter leaves so much that the index finds enough before it has seen too many.

        Of n chunks F fit, so that going through the index to find k takes k·n/F steps; comparing exactly
        takes F comparisons.
        """
        query = (
            select(Document.collection_id, func.sum(Document.chunk_count))
            .where(Document.collection_id.in_([collection.id for collection in collections]), where)
            .group_by(Document.collection_id)
        )
        fitting = {collection_id: int(chunks) for collection_id, chunks in self._session.execute(query)}
        return [
            collection
            for collection in collections
            if fitting.get(collection.id, 0) ** 2
            > self._cost_of_a_step * self._most * (collection.indexed_chunks or 0)
        ]

    def _ask_index(self, asked: Asked, scope: Values) -> Nearest:
        candidates = min(max(self._most, CANDIDATES_OF_INDEX), CANDIDATES_OF_INDEX_MOST)
        settings = {"hnsw.ef_search": str(candidates), "hnsw.iterative_scan": "relaxed_order"}
        name = HNSW if self._where is None else HNSW_FILTERED
        return self._look(_of_index, asked, scope, name, settings)

    def _compare_all(self, asked: Asked, scope: Values) -> Nearest:
        """Compare all that fits of whole collections: beginning with the documents, if there is a filter."""
        if self._where is None:
            return self._look(_of_collections, asked, scope, EXACT)
        fitting = (
            select(Document.id)
            .where(Document.collection_id == any_(COLLECTION_IDS), self._where)
            .cte("fitting")
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
        query = _nearest(EMBEDDING, asked.dimensions).join(fitting, fitting.c.id == Chunk.document_id)
        return self._run(query.order_by(Chunk.id), asked, scope, EXACT, untried=BY_DOCUMENT)

    def _look(
        self,
        build: Build,
        asked: Asked,
        scope: Values,
        name: str,
        settings: Values | None = None,
    ) -> Nearest:
        if self._where is None:
            statement = _compiled(build, asked.dimensions, self._reads_passages)
            return self._run(statement, asked, scope, name, untried=BY_INDEX, settings=settings)
        query = build(asked.dimensions).join(Document, Document.id == Chunk.document_id).where(self._where)
        return self._run(query, asked, scope, name, untried=BY_INDEX, settings=settings)

    def _run(
        self,
        statement: str | Select[Any],
        asked: Asked,
        scope: Values,
        name: str,
        *,
        untried: Sequence[str],
        settings: Values | None = None,
    ) -> Nearest:
        started = time.monotonic()
        fixed = {**scope, "project_id": self._project_id, "most": self._most}
        vector = {"vector": asked.text}
        if isinstance(statement, str):
            rows = self._statements.run_prepared(statement, fixed, vector, untried=untried, settings=settings)
        else:
            rows = self._statements.run(statement, fixed | vector, untried=untried, settings=settings)
        # That nothing came after the index is not worth a word.
        if rows or name != EXACT or not self._by_index:
            self._note(name, time.monotonic() - started)
        if self._reads_passages:
            self.passages |= {row[0]: passage_in(row) for row in rows}
        return {row[0]: float(row[-1]) for row in rows}


def _nearest(key: ColumnElement[Any], dimensions: int) -> Select[Any]:
    distance = key.op("<=>", return_type=Float)(given_vector(dimensions)).label("distance")
    own = Chunk.project_id == bindparam("project_id")
    return select(Chunk.id, distance).where(own).order_by("distance").limit(bindparam("most", type_=Integer))


def _of_index(dimensions: int) -> Select[Any]:
    # As the index has it, or it is not used.
    key = cast(EMBEDDING, HALFVEC(dimensions))
    return _nearest(key, dimensions).where(Chunk.collection_id == COLLECTION_ID, Chunk.id <= INDEXED_THROUGH)


def _after_index(dimensions: int) -> Select[Any]:
    # Bounds of the pair: by the id alone the planner goes through all newer chunks of all collections, and
    # with `collection_id = …` beside the pair Postgres begins at the collection's first chunk.
    pair = tuple_(Chunk.collection_id, Chunk.id) > tuple_(COLLECTION_ID, INDEXED_THROUGH)
    query = _nearest(EMBEDDING, dimensions).where(pair, Chunk.collection_id <= COLLECTION_ID)
    return query.order_by(Chunk.id)


def _of_collections(dimensions: int) -> Select[Any]:
    query = _nearest(EMBEDDING, dimensions).where(Chunk.collection_id == any_(COLLECTION_IDS))
    return query.order_by(Chunk.id)


@cache
def _compiled(build: Build, dimensions: int, reads_passages: bool) -> str:
    query = build(dimensions)
    return compiled(with_passages(query) if reads_passages else query)
