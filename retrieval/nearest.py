"""The chunks nearest to a vector: by a collection's index, exactly, or both together.

An index is asked for the nearest of all that it holds. A filter leaves holes in that: of the hundred nearest
perhaps one fits. So what few documents a filter leaves are compared exactly, and with many the index is gone
through for as long as it takes. What was loaded after the index, and collections without one, are compared
exactly in any case, so that a search always sees all that is there (`retrieval/vector_index.py`).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Select,
    and_,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import Session

from db.models import Chunk, Collection, Document

EXACT, HNSW, HNSW_FILTERED = "vector_exact", "vector_hnsw", "vector_hnsw_filtered"
EMBEDDING: ColumnElement[Any] = Chunk.__table__.c.embedding
# What going on to one more fitting chunk of an index costs, in comparisons of an exact search: each step
# looks at the neighbours of several others.
COST_OF_A_STEP = 40.0
# The planner's guesses can be wrong by far: what an index costs, how many documents a filter leaves, how many
# chunks came after an id. By then it is decided how to look, and it is told what not to try.
BY_INDEX = ("enable_sort",)
BY_SCAN = ("enable_seqscan",)
BY_DOCUMENT = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")

Nearest = dict[int, float]  # the distance of each chunk


class VectorSearch:
    """Finds the nearest chunks of some collections' documents.

    Args:
        where: on `Document`.
        most: how many are looked for.
        note: is told each way of searching that was used, with the seconds it took.
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
    ) -> None:
        self._session = session
        self._project_id = project_id
        self._where = where
        self._most = most
        self._note = note
        self._cost_of_a_step = cost_of_a_step
        self._untried: Sequence[str] = ()
        self.distances: Nearest = {}  # of what was found last
        self._by_index = [collection for collection in collections if collection.index_name is not None]
        if where is not None and self._by_index:
            self._by_index = self._worth_the_index(self._by_index, where)
        self._exactly = [collection for collection in collections if collection not in self._by_index]

    def nearest(self, vector: list[float]) -> list[int]:
        """The chunks nearest to the vector, the nearest first."""
        found: Nearest = {}
        exactly = [collection.id for collection in self._exactly]
        later = []
        for collection in self._by_index:
            by_index = self._ask_index(collection, vector)
            found |= by_index
            # Fewer only where the index lost its way: among deleted chunks, or by a filter against the grain.
            if len(by_index) < self._most:
                exactly.append(collection.id)
            else:
                later.append(_after_index(collection))
        if later:
            found |= self._compare(or_(*later), vector)
        if exactly:
            found |= self._compare_all(exactly, vector)
        self._leave_out((), {})
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

    def _ask_index(self, collection: Collection, vector: list[float]) -> Nearest:
        # As the index has it, or it is not used.
        key = cast(EMBEDDING, HALFVEC(collection.dimensions))
        query = self._chunks(key, vector).where(
            Chunk.collection_id == collection.id, Chunk.id <= _through(collection)
        )
        if self._where is not None:
            query = query.join(Document, Document.id == Chunk.document_id).where(self._where)
        parameters = {"hnsw.ef_search": str(self._most), "hnsw.iterative_scan": "relaxed_order"}
        name = HNSW if self._where is None else HNSW_FILTERED
        return self._look(query.order_by("distance"), name, BY_INDEX, parameters)

    def _compare(self, scope: ColumnElement[bool], vector: list[float]) -> Nearest:
        """Compare the chunks of a scope, of those that fit."""
        query = self._chunks(EMBEDDING, vector).where(scope)
        if self._where is not None:
            query = query.join(Document, Document.id == Chunk.document_id).where(self._where)
        return self._look(query.order_by("distance", Chunk.id), EXACT, BY_SCAN)

    def _compare_all(self, collection_ids: list[str], vector: list[float]) -> Nearest:
        """Compare all that fits of whole collections: beginning with the documents, if there is a filter."""
        if self._where is None:
            return self._compare(Chunk.collection_id.in_(collection_ids), vector)
        fitting = (
            select(Document.id)
            .where(Document.collection_id.in_(collection_ids), self._where)
            .cte("fitting")
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
        query = self._chunks(EMBEDDING, vector).join(fitting, fitting.c.id == Chunk.document_id)
        return self._look(query.order_by("distance", Chunk.id), EXACT, BY_DOCUMENT)

    def _chunks(self, key: ColumnElement[Any], vector: list[float]) -> Select[Any]:
        distance = key.op("<=>", return_type=Float)(halfvec(vector)).label("distance")
        return select(Chunk.id, distance).where(Chunk.project_id == self._project_id)

    def _look(
        self, query: Select[Any], name: str, untried: Sequence[str], parameters: dict[str, str] | None = None
    ) -> Nearest:
        started = time.monotonic()
        self._leave_out(untried, parameters or {})
        rows = self._session.execute(query.limit(self._most)).all()
        # That nothing came after the index is not worth a word.
        if rows or name != EXACT or not self._by_index:
            self._note(name, time.monotonic() - started)
        return {row.id: float(row.distance) for row in rows}

    def _leave_out(self, untried: Sequence[str], parameters: dict[str, str]) -> None:
        """Tell the planner what not to try, until it is told anew or the transaction ends."""
        told = dict.fromkeys(self._untried, "on") | dict.fromkeys(untried, "off") | parameters
        self._untried = untried
        # By the driver, and only once between two searches: as statements of SQLAlchemy's, one before and one
        # after each, they took a third of a search's time.
        if told:
            statements = "; ".join(f"SET LOCAL {name} = {value}" for name, value in told.items())
            self._session.connection().exec_driver_sql(statements)


def halfvec(vector: list[float]) -> ColumnElement[Any]:
    return cast(literal(vector, HALFVEC(len(vector))), HALFVEC(len(vector)))


def _after_index(collection: Collection) -> ColumnElement[bool]:
    # Said of the pair, or the planner goes through all newer ids of all collections.
    pair = tuple_(Chunk.collection_id, Chunk.id) > tuple_(literal(collection.id), _through(collection))
    return and_(Chunk.collection_id == collection.id, pair)


def _through(collection: Collection) -> ColumnElement[int]:
    return cast(literal(collection.indexed_through), BigInteger)
