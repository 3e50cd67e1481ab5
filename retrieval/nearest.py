"""The chunks nearest to a vector: by a collection's index, exactly, or both together.

An index is asked for the nearest of all that it holds. A filter leaves holes in that: of the hundred nearest
perhaps one fits. So what few documents a filter leaves are compared exactly, and with many the index is gone
through for as long as it takes. What was loaded after the index, and collections without one, are compared
exactly in any case, so that a search always sees all that is there (`retrieval/vector_index.py`). The
statements are `retrieval/nearest_sql.py`'s.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement

from db.models import Collection
from retrieval.nearest_sql import Build, after_index, by_index, of_collections, of_few, text_of
from retrieval.passages import Passage, passage_in
from retrieval.statements import PLACE, Statements, Values, condition_of, written

EXACT, HNSW, HNSW_FILTERED = "vector_exact", "vector_hnsw", "vector_hnsw_filtered"
# What going on to one more fitting chunk of an index costs, in comparisons of an exact search: each step
# looks at the neighbours of several others.
COST_OF_A_STEP = 40.0
# How many an index is gone through for at least; so few are a matter of recall, not of speed.
CANDIDATES_OF_INDEX, CANDIDATES_OF_INDEX_MOST = 64, 1000
# The planner's guesses can be wrong by far: what an index costs, how many documents a filter leaves, how many
# chunks came after an id. By then it is decided how to look, and it is told what not to try.
BY_INDEX = ("enable_sort", "enable_seqscan")
BY_DOCUMENT = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin")

Nearest = dict[int, float]  # the distance of each chunk
Rows = Sequence[Sequence[Any]]


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
        reads_passages: whether `passages` will be asked for.
    """

    def __init__(
        self,
        statements: Statements,
        *,
        project_id: str,
        collections: Sequence[Collection],
        where: ColumnElement[bool] | None,
        most: int,
        note: Callable[[str, float], None],
        cost_of_a_step: float = COST_OF_A_STEP,
        reads_passages: bool = False,
    ) -> None:
        self._statements = statements
        self._project_id = project_id
        self._where = condition_of(where) if where is not None else None
        self._most = most
        self._note = note
        self._cost_of_a_step = cost_of_a_step
        self._reads_passages = reads_passages
        # Of what was found last.
        self.distances: Nearest = {}
        self.passages: dict[int, Passage] = {}
        self._indexed = [collection for collection in collections if collection.index_name is not None]
        self._crowded: set[str] = set()  # of which the filter leaves too much to compare it all
        self._others = [collection.id for collection in collections if collection.index_name is None]

    def nearest(self, vector: list[float]) -> list[int]:
        """The chunks nearest to the vector, the nearest first."""
        self.distances, self.passages = {}, {}
        asked = Asked(written(vector), len(vector))
        exactly = list(self._others)
        for collection in self._indexed:
            if self._where is not None and self._compare_few(asked, collection):
                continue
            # Fewer only where the index lost its way: among deleted chunks, or by a filter against the grain.
            if self._ask_index(asked, collection) < self._most:
                exactly.append(collection.id)
        if exactly:
            self._compare_all(asked, exactly)
        found = self.distances
        return sorted(found, key=lambda chunk_id: (found[chunk_id], chunk_id))[: self._most]

    def _compare_few(self, asked: Asked, collection: Collection) -> bool:
        """Compare what the filter leaves of a collection, unless that is so much that the index is faster.

        Of n chunks F fit, so that going through the index to find k takes k·n/F steps; comparing exactly
        takes F comparisons. Postgres counts F first, and may leave it at that: one message for both.
        """
        if collection.id in self._crowded:
            return False
        few = math.isqrt(int(self._cost_of_a_step * self._most * (collection.indexed_chunks or 0)))
        scope = {"collection_ids": [collection.id], "few": few}
        started = time.monotonic()
        rows = self._run(of_few, asked, scope, untried=BY_DOCUMENT)
        if rows[0][0] > few:
            self._crowded.add(collection.id)
            return False
        self._take([row[1:] for row in rows if row[1] is not None], EXACT, started)
        return True

    def _ask_index(self, asked: Asked, collection: Collection) -> int:
        """How many the index finds, and what came after it besides."""
        scope = {"collection_id": collection.id, "indexed_through": collection.indexed_through}
        candidates = min(max(self._most, CANDIDATES_OF_INDEX), CANDIDATES_OF_INDEX_MOST)
        settings = {"hnsw.ef_search": str(candidates), "hnsw.iterative_scan": "relaxed_order"}
        started = time.monotonic()
        rows = self._run(by_index, asked, scope, untried=BY_INDEX, settings=settings)
        self._take([row[:-1] for row in rows], HNSW if self._where is None else HNSW_FILTERED, started)
        if len(rows) == self._most and rows[0][-1]:
            started = time.monotonic()
            later = self._run(after_index, asked, scope, untried=BY_INDEX)
            if later:
                self._take(later, EXACT, started)
        return len(rows)

    def _compare_all(self, asked: Asked, collection_ids: Sequence[str]) -> None:
        """Compare all that fits of whole collections: beginning with the documents, if there is a filter."""
        started = time.monotonic()
        untried = BY_INDEX if self._where is None else BY_DOCUMENT
        rows = self._run(of_collections, asked, {"collection_ids": list(collection_ids)}, untried=untried)
        self._take(rows, EXACT, started)

    def _take(self, rows: Rows, name: str, started: float) -> None:
        self._note(name, time.monotonic() - started)
        self.distances |= {row[0]: float(row[-1]) for row in rows}
        if self._reads_passages:
            self.passages |= {row[0]: passage_in(row) for row in rows}

    def _run(
        self,
        build: Build,
        asked: Asked,
        scope: Values,
        *,
        untried: Sequence[str],
        settings: Values | None = None,
    ) -> Rows:
        fixed = {**scope, "project_id": self._project_id, "most": self._most}
        vector = {"vector": asked.text}
        how: dict[str, Any] = {"untried": untried, "settings": settings}
        filtered, passages = self._where is not None, self._reads_passages
        statement = text_of(build, asked.dimensions, filtered=filtered, passages=passages)
        if self._where is None:
            return self._statements.run_prepared(statement, fixed, vector, **how)
        # Each filter makes another statement of it.
        statement = statement.replace(PLACE, self._where.sql)
        return self._statements.run(statement, {**self._where.values, **fixed, **vector}, **how)
