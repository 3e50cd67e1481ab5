"""Large collections: their index is built, asked, kept true and taken away. On a few thousand real rows."""

import re
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, delete, event, select, text

from db.models import Chunk, Collection, Document
from db.queries.collections import create_collection, get_collection
from db.session import SessionFactory, autocommitting, make_engine, make_session_factory, transaction
from db.settings import Settings
from retention import House, Removal
from retention.vector_indexes import VectorIndexes
from retrieval.filters import condition
from retrieval.nearest import COST_OF_A_STEP, VectorSearch
from retrieval.search import Query, Ranking, Weights, search
from retrieval.statements import Statements
from retrieval.vector_index import (
    BUILD_LOCK,
    MIB,
    BuildCancelled,
    IndexBuilder,
    IndexPolicy,
    Refreshed,
    memory_needed,
)
from tests.retrieval.vectors import DIMENSIONS, Clusters, Vector, load_vectors
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

POLICY = IndexPolicy(smallest=500)
DOCUMENTS, CHUNKS_OF_EACH = 100, 25
INDEXES = text(
    "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
    "WHERE starts_with(relname, 'ix_chunks_vectors_')"
)


class Library:
    """A database with collections of clustered vectors."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.factory: SessionFactory = make_session_factory(engine)
        self.clusters = Clusters(7)

    def collection(self, *, documents: int = DOCUMENTS) -> str:
        with transaction(self.factory) as session:
            collection = create_collection(session, project_id="default", name="c")
        self.load(collection.id, documents=documents)
        return collection.id

    def load(self, collection_id: str, *, documents: int, vectors: list[Vector] | None = None) -> None:
        with transaction(self.factory) as session:
            collection = get_collection(session, collection_id, project_id="default")
            for number in range(documents):
                own = vectors or [self.clusters.vector() for _ in range(CHUNKS_OF_EACH)]
                attributes: dict[str, object] = {"percent": number % 100}
                load_vectors(session, collection, own, attributes=attributes)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def refresh(
        self,
        collection_id: str,
        policy: IndexPolicy = POLICY,
        tell: Callable[[str], None] = lambda message: None,
    ) -> Refreshed:
        with self.connection() as connection:
            return IndexBuilder(connection, policy, tell).refresh(collection_id)

    def read(self, collection_id: str) -> Collection:
        with self.factory() as session:
            return get_collection(session, collection_id, project_id="default")

    def indexes(self) -> dict[str, bool]:
        """All vector indexes that there are, and whether they are valid."""
        with self.engine.connect() as connection:
            return {row.relname: row.indisvalid for row in connection.execute(INDEXES)}

    def nearest(
        self,
        collections: Sequence[str],
        vector: Vector,
        *,
        percent: int | None = None,
        exactly: bool = False,
        cost_of_a_step: float = COST_OF_A_STEP,
    ) -> tuple[list[int], list[str]]:
        """The ten nearest chunks, and how they were looked for.

        Args:
            percent: of the documents, that a filter leaves.
        """
        used: list[str] = []
        given = {"type": "lt", "key": "percent", "value": percent}
        with autocommitting(self.factory) as session:
            rows = [get_collection(session, each, project_id="default") for each in collections]
            for row in rows if exactly else ():
                row.index_name = None
            with session.no_autoflush:
                vectors = VectorSearch(
                    Statements(session),
                    project_id="default",
                    collections=rows,
                    where=condition(given) if percent is not None else None,
                    most=30,
                    note=lambda name, _: used.append(name),
                    cost_of_a_step=cost_of_a_step,
                )
                return vectors.nearest(vector)[:10], used

    def recall(
        self,
        collections: Sequence[str],
        *,
        percent: int | None = None,
        cost_of_a_step: float = COST_OF_A_STEP,
    ) -> tuple[float, set[str]]:
        """The share of the ten truly nearest that is found, over twenty queries, and how."""
        hits, ways = 0, set()
        for _ in range(20):
            asked = self.clusters.vector()
            found, used = self.nearest(collections, asked, percent=percent, cost_of_a_step=cost_of_a_step)
            true, _ = self.nearest(collections, asked, percent=percent, exactly=True)
            assert len(true) == len(found) == 10
            hits += len(set(found) & set(true))
            ways |= set(used)
        return hits / 200, ways


@pytest.fixture(scope="module")
def shared(postgres_server: "PostgresServer", migrated_template: str) -> Iterator[Library]:
    """For tests that leave other collections alone."""
    name = f"vectors_{secrets.token_hex(6)}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY file_copy")
    engine = make_engine(postgres_server.url(name))
    yield Library(engine)
    engine.dispose()
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def indexed(shared: Library) -> str:
    """A collection with an index, and nothing after it."""
    collection = shared.collection()
    assert shared.refresh(collection).chunks == DOCUMENTS * CHUNKS_OF_EACH
    return collection


class TestPaths:
    @pytest.mark.parametrize(
        ("percent", "cost_of_a_step", "expected"),
        [
            (None, COST_OF_A_STEP, {"vector_hnsw"}),
            (1, COST_OF_A_STEP, {"vector_exact"}),
            (10, COST_OF_A_STEP, {"vector_exact"}),
            (10, 0.0, {"vector_hnsw_filtered"}),
            (50, COST_OF_A_STEP / 4, {"vector_hnsw_filtered"}),
        ],
    )
    def test_finds_what_comparing_all_finds(
        self, shared: Library, indexed: str, percent: int | None, cost_of_a_step: float, expected: set[str]
    ) -> None:
        recall, used = shared.recall([indexed], percent=percent, cost_of_a_step=cost_of_a_step)
        assert used == expected
        # What compares all finds all; an index is asked for thirty, so that ten are nearly certain.
        assert recall == 1.0 if expected == {"vector_exact"} else recall >= 0.95

    @pytest.mark.parametrize("percent", [None, 50])
    def test_postgres_uses_the_index(self, shared: Library, percent: int | None) -> None:
        collection = shared.collection(documents=40)
        shared.refresh(collection)
        shared.load(collection, documents=1)
        plans: list[str] = []

        def explain(
            connection: Connection, cursor: object, statement: str, parameters: dict[str, Any], *_: object
        ) -> None:
            # What the planner is told stands before the search, and holds for that alone.
            *before, query = statement.split("; ")
            told = [setting for setting in before if setting.startswith("SET LOCAL")]
            if told and not query.startswith("EXPLAIN"):
                rows = connection.exec_driver_sql("; ".join([*told, f"EXPLAIN {query}"]), parameters)
                plans.append("\n".join(rows.scalars()))

        event.listen(shared.engine, "after_cursor_execute", explain)
        try:
            shared.nearest([collection], shared.clusters.vector(), percent=percent, cost_of_a_step=0.0)
        finally:
            event.remove(shared.engine, "after_cursor_execute", explain)
        by_index, later = plans[-2:]
        assert f"Index Scan using {shared.read(collection).index_name}" in by_index
        assert "Sort" not in by_index
        # What came after the index is found by both columns, not among the newer chunks of all collections.
        for plan in by_index, later:
            assert "ix_chunks_collection_id_id" in plan
            assert "ROW(collection_id, id) >" in plan

    @pytest.mark.parametrize("open_session", [autocommitting, transaction])
    def test_planner_has_its_freedom_back(
        self, shared: Library, indexed: str, open_session: Callable[..., Any]
    ) -> None:
        with open_session(shared.factory) as session:
            rows = [get_collection(session, indexed, project_id="default")]
            search(
                session, project_id="default", collections=rows, limit=1, ranking=Ranking(Weights(words=0.0)),
                queries=[Query("q", shared.clusters.vector())],
                where=condition({"type": "lt", "key": "percent", "value": 3}),
            )  # fmt: skip
            for name in ("enable_sort", "enable_seqscan", "enable_hashjoin", "enable_mergejoin"):
                assert session.scalars(text(f"SHOW {name}")).one() == "on"

    def test_several_collections_at_once(self, shared: Library, indexed: str) -> None:
        small = shared.collection(documents=10)
        recall, used = shared.recall([indexed, small])
        assert used == {"vector_hnsw", "vector_exact"}
        assert recall >= 0.95

    def test_a_search_names_its_way(self, shared: Library, indexed: str) -> None:
        with shared.factory() as session:
            found = search(
                session, project_id="default", limit=5, ranking=Ranking(Weights(words=0.0)),
                collections=[get_collection(session, indexed, project_id="default")],
                queries=[Query("q", shared.clusters.vector())],
            )  # fmt: skip
        assert found.used == ["vector_hnsw"]
        assert found.seconds["vector_hnsw"] > 0
        assert len(found.hits) == 5


class TestWatermark:
    def test_what_is_loaded_later_is_found_at_once(self, shared: Library) -> None:
        collection, other = shared.collection(documents=40), shared.collection(documents=20)
        shared.refresh(collection)
        before = shared.read(collection)
        asked = shared.clusters.vector()
        shared.load(collection, documents=1, vectors=[asked])
        shared.load(other, documents=1, vectors=[asked])
        [nearest, *_], used = shared.nearest([collection], asked)
        with shared.factory() as session:
            chunk = session.get_one(Chunk, nearest)
        assert chunk.collection_id == collection
        assert before.indexed_through is not None
        assert chunk.id > before.indexed_through
        assert used == ["vector_hnsw", "vector_exact"]
        with shared.factory() as session:
            rows = [session.get_one(Collection, collection)]
            found = search(
                session, project_id="default", collections=rows, queries=[Query("words", asked)], limit=200
            )
        assert len(found.hits) == 100  # the index finds as many, and one is nearer
        assert found.hits[0].chunk.id == nearest
        assert "1 of 1001 chunks came after it" in shared.refresh(collection).message
        assert shared.read(collection).index_name == before.index_name

    def test_is_built_anew_when_much_came_after_it(self, shared: Library) -> None:
        collection = shared.collection(documents=30)
        shared.refresh(collection)
        old = shared.read(collection).index_name
        shared.load(collection, documents=21)  # 525 chunks; `smallest` is 500
        assert shared.refresh(collection).chunks == 51 * CHUNKS_OF_EACH
        new = shared.read(collection).index_name
        assert new is not None
        assert old not in shared.indexes()
        assert shared.indexes()[new]
        assert shared.recall([collection])[1] == {"vector_hnsw"}

    def test_is_built_anew_when_much_was_deleted(self, shared: Library) -> None:
        collection = shared.collection(documents=60)
        shared.refresh(collection)
        old = shared.read(collection).index_name
        _delete_documents(shared, collection, keep=39)
        # Among so many deleted ones the index still finds enough, or all are compared.
        recall, _ = shared.recall([collection])
        assert recall >= 0.95
        assert shared.refresh(collection).chunks == 39 * CHUNKS_OF_EACH
        assert shared.read(collection).index_name != old

    def test_goes_when_little_is_left(self, shared: Library) -> None:
        collection = shared.collection(documents=30)
        shared.refresh(collection)
        _delete_documents(shared, collection, keep=1)
        # Fewer than were looked for: the index may have lost its way, so all are compared.
        assert shared.recall([collection]) == (1.0, {"vector_hnsw", "vector_exact"})
        assert "Dropped" in shared.refresh(collection).message
        assert shared.read(collection).index_name is None
        assert shared.recall([collection]) == (1.0, {"vector_exact"})

    def test_an_index_that_is_gone_changes_no_answer(self, shared: Library) -> None:
        collection = shared.collection(documents=30)
        shared.refresh(collection)
        with shared.connection() as connection:
            connection.execute(text(f"DROP INDEX {shared.read(collection).index_name}"))
        assert shared.recall([collection]) == (1.0, {"vector_hnsw"})
        assert shared.refresh(collection).seconds is not None


class TestPolicy:
    def test_a_small_collection_has_none(self, shared: Library) -> None:
        collection, there = shared.collection(documents=2), shared.indexes()
        assert "No vector index is needed" in shared.refresh(collection).message
        assert shared.read(collection).index_name is None
        assert shared.indexes() == there

    def test_who_has_nothing_to_build_does_not_wait(self, shared: Library, indexed: str) -> None:
        small = shared.collection(documents=2)
        with shared.connection() as builder:
            builder.execute(text("SELECT pg_advisory_lock(:key)"), {"key": BUILD_LOCK})
            assert "No vector index is needed" in shared.refresh(small).message
            assert "stays as it is" in shared.refresh(indexed).message
            builder.execute(text("SELECT pg_advisory_unlock_all()"))

    def test_what_memory_would_speed_a_build_up_is_said(self, shared: Library) -> None:
        collection = shared.collection(documents=40)
        told: list[str] = []
        assert shared.refresh(collection, replace(POLICY, memory_bytes=MIB), told.append).chunks == 1_000
        [warning] = told
        [allowed] = map(int, re.findall(r"LATHE_VECTOR_INDEX_MEMORY_BYTES=(\d+)", warning))
        assert 0 <= allowed - memory_needed(1_000, DIMENSIONS) < MIB
        with shared.connection() as connection:
            connection.execute(text(f"DROP INDEX {shared.read(collection).index_name}"))
        assert shared.refresh(collection, replace(POLICY, memory_bytes=allowed), told.append).chunks == 1_000
        assert told == [warning]

    @pytest.mark.parametrize(("large", "candidates"), [(500, 64), (499, 128)])
    def test_many_are_built_with_more_candidates(self, shared: Library, large: int, candidates: int) -> None:
        collection = shared.collection(documents=20)
        shared.refresh(collection, replace(POLICY, large=large))
        with shared.connection() as connection:
            options = text("SELECT reloptions FROM pg_class WHERE relname = :name")
            found = connection.scalars(options, {"name": shared.read(collection).index_name}).one()
        assert f"ef_construction={candidates}" in found

    def test_too_many_dimensions_are_said(self, shared: Library) -> None:
        collection = shared.collection(documents=20)
        with transaction(shared.factory) as session:
            get_collection(session, collection, project_id="default").dimensions = 4001
        assert "4001 dimensions cannot be indexed" in shared.refresh(collection).message

    def test_a_deleted_collection_is_nothing_to_do(self, shared: Library) -> None:
        assert "was deleted" in shared.refresh("vs-gone").message


class TestLeftBehind:
    def test_an_index_goes_with_its_collection(self, shared: Library, settings: Settings) -> None:
        collection = shared.collection(documents=20)
        shared.refresh(collection)
        name = shared.read(collection).index_name
        with transaction(shared.factory) as session:
            session.delete(get_collection(session, collection, project_id="default"))
        rule, house = VectorIndexes(), House(settings)
        with transaction(shared.factory) as session:
            [item] = rule.find(session, house, None, 50).items
        assert item.id == name
        assert item.bytes > 0
        with shared.connection() as builder:
            builder.execute(text("SELECT pg_advisory_lock(:key)"), {"key": BUILD_LOCK})
            with transaction(shared.factory) as session:
                assert rule.find(session, house, None, 50).items == []
                assert rule.remove(session, house, item) == Removal.KEPT
            builder.execute(text("SELECT pg_advisory_unlock_all()"))
        with transaction(shared.factory) as session:
            assert rule.remove(session, house, item) == Removal.DONE
        assert name not in shared.indexes()

    def test_a_cancelled_build_leaves_nothing_for_good(self, shared: Library) -> None:
        collection = shared.collection(documents=20)
        there = shared.indexes()
        told: list[str] = []
        with shared.engine.connect() as writer, shared.connection() as connection:
            # What writes holds a build up, and it is cancelled in the midst of it.
            writer.execute(text("LOCK TABLE chunks IN ROW EXCLUSIVE MODE"))
            builder = IndexBuilder(connection, POLICY, told.append)
            failed: list[Exception] = []
            thread = threading.Thread(target=_try, args=(builder, collection, failed))
            thread.start()
            wait_until(lambda: len(shared.indexes()) > len(there))
            assert False in shared.indexes().values()
            while thread.is_alive():
                builder.cancel()
                thread.join(0.1)
        assert failed
        assert shared.read(collection).index_name is None
        assert shared.refresh(collection).chunks == 20 * CHUNKS_OF_EACH
        assert set(shared.indexes().values()) == {True}
        assert len(shared.indexes()) == len(there) + 1

    def test_builders_take_turns(self, shared: Library) -> None:
        collection = shared.collection(documents=20)
        told: list[str] = []
        with shared.connection() as first, shared.connection() as second:
            first.execute(text("SELECT pg_advisory_lock(:key)"), {"key": BUILD_LOCK})
            thread = threading.Thread(
                target=IndexBuilder(second, POLICY, told.append).refresh, args=(collection,)
            )
            thread.start()
            wait_until(lambda: bool(told))
            assert "waiting for it" in told[0]
            assert shared.read(collection).index_name is None
            first.execute(text("SELECT pg_advisory_unlock_all()"))
            thread.join()
        assert shared.read(collection).index_name is not None

    def test_one_that_waits_can_be_cancelled(self, shared: Library) -> None:
        collection = shared.collection(documents=20)
        with shared.connection() as first, shared.connection() as second:
            first.execute(text("SELECT pg_advisory_lock(:key)"), {"key": BUILD_LOCK})
            told: list[str] = []
            builder = IndexBuilder(second, POLICY, told.append)
            failed: list[Exception] = []
            thread = threading.Thread(target=_try, args=(builder, collection, failed))
            thread.start()
            wait_until(lambda: bool(told))
            while thread.is_alive():
                builder.cancel()
                thread.join(0.1)
            assert isinstance(failed[0], BuildCancelled)
            first.execute(text("SELECT pg_advisory_unlock_all()"))


def _try(builder: IndexBuilder, collection_id: str, failed: list[Exception]) -> None:
    try:
        builder.refresh(collection_id)
    except Exception as error:  # noqa: BLE001 - what it is, the test looks at
        failed.append(error)


def _delete_documents(library: Library, collection_id: str, *, keep: int) -> None:
    with transaction(library.factory) as session:
        some = select(Document.id).where(Document.collection_id == collection_id).order_by(Document.id)
        session.execute(delete(Document).where(Document.id.in_(some.offset(keep))))
