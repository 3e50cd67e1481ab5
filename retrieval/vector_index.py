"""The vector index of a large collection: when it pays, how it is built, what it leaves out.

One HNSW index a collection, of its chunks up to a watermark: `collection_id = … AND id <= …`. What is
loaded later bears larger ids and touches no index, since COPY into a live one is slower by two orders. Search
compares those chunks exactly, and so sees them at once (`retrieval/nearest.py`). When they are many, a new
index is built beside the old one, the collection's row switches, and the old one goes.

What a search finds never hangs on an index: the same statement without one sorts.
"""

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import OperationalError

from db.wording import counted

PREFIX = "ix_chunks_vectors_"
# Held while indexes of chunks are built or dropped. One for all collections: Postgres would let the second
# wait for the table's lock with a snapshot that the first waits for, until the deadlock detector ends one.
BUILD_LOCK = 4_155_304
LOOK_SECONDS = 0.5
# pgvector's defaults. Where thousands of chunks are alike, they are linked with each other alone, and who
# begins elsewhere finds none: 3 to 8 searches of 100 at a million, however many candidates they looked at.
NEIGHBOURS, CANDIDATES_IN_BUILD, CANDIDATES_IN_LARGE_BUILD = 16, 64, 128
# What pgvector can index at half precision.
MOST_DIMENSIONS = 4000
# What building takes for each chunk besides its vector, and at least; a parallel build takes all at once.
CHUNK_BYTES = 1500
# With less than 32 MiB for each of its three processes, Postgres would build in fewer.
LEAST_MEMORY_BYTES = 96 * 1024**2
MIB = 1024**2
SQLSTATE_NO_ROOM = ("53100", "53200")

SESSION = text(
    """
    SELECT set_config('lock_timeout', '0', false), set_config('statement_timeout', '0', false),
           set_config('client_connection_check_interval', '2s', false),
           set_config('idle_session_timeout', '60s', false)
    """
)
# Two bounds of the pair: with `collection_id = …` beside it Postgres begins at the collection's first chunk.
STATE = text(
    """
    SELECT dimensions, index_name, indexed_through, indexed_chunks,
           (SELECT coalesce(sum(chunk_count), 0) FROM documents WHERE collection_id = c.id) AS chunks,
           (SELECT coalesce(max(id), 0) FROM chunks WHERE collection_id = c.id) AS newest,
           (SELECT count(*) FROM chunks
            WHERE collection_id <= c.id AND (collection_id, id) > (c.id, c.indexed_through)) AS later,
           EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(c.index_name) AND indisvalid) AS usable
    FROM collections c WHERE id = :id
    """
)
LEFT_BEHIND = text(
    """
    SELECT relname FROM pg_class JOIN pg_index ON indexrelid = pg_class.oid
    WHERE indrelid = to_regclass('chunks') AND starts_with(relname, :prefix)
      AND relname NOT IN (SELECT index_name FROM collections WHERE index_name IS NOT NULL)
    """
)
SWITCH = text(
    """
    UPDATE collections SET index_name = :name, indexed_through = :through, indexed_chunks = :chunks
    WHERE id = :id
    """
)
# `postgres` names the phases in words: "building index: loading tuples", "waiting for old snapshots".
PROGRESS = text("SELECT phase, tuples_done FROM pg_stat_progress_create_index WHERE pid = :pid")


def memory_needed(chunks: int, dimensions: int) -> int:
    """Bytes of Postgres' memory with which an index of so many vectors is built at once."""
    return chunks * (2 * dimensions + CHUNK_BYTES)


@dataclass(frozen=True)
class IndexPolicy:
    """When an index is built, and with how much memory (docs/experiments.md has the measurements).

    Args:
        smallest: the chunks from which on a collection has one. Below, comparing all of them takes less time
            than embedding the query does.
        stale_share: of the collection's chunks; when more than these, and more than `smallest`, were loaded
            or deleted since the index was built, it is built anew.
        large: the chunks beyond which more candidates are looked at in building, which takes longer.
        memory_bytes: at most, for one build. A graph that does not fit is built several times slower.
    """

    smallest: int = 5_000
    stale_share: float = 0.1
    large: int = 100_000
    memory_bytes: int = 1024**3


@dataclass(frozen=True)
class Refreshed:
    """What was done, in a sentence; the `chunks` that are indexed now, and how long building took."""

    message: str
    chunks: int = 0
    seconds: float | None = None


class BuildCancelled(Exception):
    """Somebody called `cancel`. What was begun is left for `drop_left_behind`."""


class IndexBuilder:
    """Builds, replaces and drops collections' indexes, on one connection.

        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            IndexBuilder(connection).refresh(collection_id)

    Args:
        connection: in AUTOCOMMIT, which building beside running loads and searches demands.
        tell: is given what the user should know while it runs.
    """

    def __init__(
        self,
        connection: Connection,
        policy: IndexPolicy = IndexPolicy(),
        tell: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._tell = tell
        self._cancelled = threading.Event()
        self._driver: Any = connection.connection.dbapi_connection
        self.pid: int = connection.scalar(text("SELECT pg_backend_pid()"))
        self.building_chunks = 0  # how many the index will hold that is being built just now
        self.waiting = False  # for another builder

    def refresh(self, collection_id: str) -> Refreshed:
        """Build the collection's index if it pays, anew if the old one leaves out too much. How many chunks
        there are is what its documents' `chunk_count` say.

        Raises:
            BuildCancelled: by `cancel`, from another thread.
        """
        # Who has nothing to build does not wait for those who build.
        kept = self._kept(self._one(STATE, id=collection_id))
        if kept is not None:
            return kept
        with self._only_builder():
            self._drop_left_behind()
            state = self._one(STATE, id=collection_id)
            kept = self._kept(state)
            if kept is not None:
                return kept
            if state.chunks < self._policy.smallest:
                self._switch(collection_id, None, None, None)
                self._drop(state.index_name)
                return Refreshed(
                    f"Dropped the vector index: {state.chunks} chunks are compared as fast without it."
                )
            return self._replace(collection_id, state)

    def drop_if_left(self, name: str) -> bool:
        """Drop an index that no collection names, of one that was deleted or of a builder that was killed.
        Returns False, and does nothing, while somebody builds."""
        with self._only_builder(patient=False) as alone:
            if alone and name in self._left_behind():
                self._drop(name)
            return alone

    def cancel(self) -> None:
        """Let `refresh` end soon; to be called again until it has, since a statement may just begin."""
        self._cancelled.set()
        self._driver.cancel()

    def _kept(self, state: Row[Any] | None) -> Refreshed | None:
        """Why all stays as it is; None: there is something to build or to drop."""
        if state is None:
            return Refreshed("The collection was deleted: there is nothing to index.")
        chunks, smallest = int(state.chunks), self._policy.smallest
        if state.index_name is None and chunks < smallest:
            return Refreshed(f"No vector index is needed for {counted(chunks, 'chunk')}: all are compared.")
        if state.index_name is None and not 0 < (state.dimensions or 0) <= MOST_DIMENSIONS:
            return Refreshed(
                f"Vectors of {state.dimensions} dimensions cannot be indexed, only up to {MOST_DIMENSIONS}: "
                "they are compared exactly."
            )
        if not state.usable or chunks < smallest // 2:
            return None
        stale = state.later + max(0, state.indexed_chunks - (chunks - state.later))
        if stale > max(smallest, self._policy.stale_share * chunks):
            return None
        return Refreshed(
            f"The vector index stays as it is: {state.later} of {chunks} chunks came after it, and are "
            "compared exactly.",
            state.indexed_chunks,
        )

    def _replace(self, collection_id: str, state: Row[Any]) -> Refreshed:
        chunks = int(state.chunks)
        started, self.building_chunks = time.monotonic(), chunks
        name = self._build(collection_id, state)
        if not self._switch(collection_id, name, state.newest, chunks):
            self._drop(name)
            return Refreshed("The collection was deleted while its vector index was built.")
        if state.index_name is not None:
            self._drop(state.index_name)
        seconds = round(time.monotonic() - started, 3)
        return Refreshed(f"Built the vector index of {chunks} chunks in {seconds:.1f} s.", chunks, seconds)

    def _build(self, collection_id: str, state: Row[Any]) -> str:
        memory = self._memory(int(state.chunks), state.dimensions)
        self._configure("maintenance_work_mem", f"{memory // 1024}kB")
        try:
            return self._create(collection_id, state)
        except OperationalError as error:
            if error.orig is None or getattr(error.orig, "pgcode", None) not in SQLSTATE_NO_ROOM:
                raise
            # As in a container whose /dev/shm is small.
            self._tell(f"Building the vector index in one process, since several found no room: {error.orig}")
        self._drop_left_behind()
        self._configure("max_parallel_maintenance_workers", "0")
        return self._create(collection_id, state)

    def _memory(self, chunks: int, dimensions: int) -> int:
        needed, allowed = memory_needed(chunks, dimensions), self._policy.memory_bytes
        if needed > allowed:
            mebibytes = math.ceil(needed / MIB)
            self._tell(
                f"Building the vector index of {counted(chunks, 'chunk')} takes about {mebibytes:,} MiB of "
                f"Postgres' memory, and may have {allowed // MIB:,}: what does not fit takes several times "
                f"as long. LATHE_VECTOR_INDEX_MEMORY_BYTES={mebibytes * MIB} allows it, while it is built."
            )
        return min(allowed, max(LEAST_MEMORY_BYTES, needed))

    def _create(self, collection_id: str, state: Row[Any]) -> str:
        name = f"{PREFIX}{secrets.token_hex(8)}"
        is_large = state.chunks > self._policy.large
        candidates = CANDIDATES_IN_LARGE_BUILD if is_large else CANDIDATES_IN_BUILD
        create = text(
            f"CREATE INDEX CONCURRENTLY {name} ON chunks "
            f"USING hnsw ((embedding::halfvec({state.dimensions:d})) halfvec_cosine_ops) "
            f"WITH (m = {NEIGHBOURS}, ef_construction = {candidates}) "
            "WHERE collection_id = :id AND id <= CAST(:through AS bigint)"
        )
        self._do(create, id=collection_id, through=state.newest)
        return name

    def _switch(self, collection_id: str, name: str | None, through: int | None, chunks: int | None) -> bool:
        done = self._do(SWITCH, id=collection_id, name=name, through=through, chunks=chunks)
        return bool(done.rowcount)

    def _left_behind(self) -> list[str]:
        return list(self._do(LEFT_BEHIND, prefix=PREFIX).scalars())

    def _drop_left_behind(self) -> None:
        for name in self._left_behind():
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._do(text(f'DROP INDEX CONCURRENTLY IF EXISTS "{name}"'))

    @contextmanager
    def _only_builder(self, *, patient: bool = True) -> Iterator[bool]:
        """Wait until nobody else builds or drops indexes of chunks; or say whether that is so now.

        The lock ends with the connection: if we die, within seconds; if we freeze, when what runs is done and
        the connection idle for a minute.
        """
        self._do(SESSION)
        alone = self._lock()
        if patient and not alone:
            self._tell("Another vector index is being built: waiting for it.")
            self.waiting = True
            while not self._lock():
                self._cancelled.wait(LOOK_SECONDS)
            self.waiting, alone = False, True
        try:
            yield alone
        finally:
            if not self._connection.invalidated:
                self._connection.execute(text("SELECT pg_advisory_unlock_all()"))
                self._connection.execute(text("RESET ALL"))

    def _lock(self) -> bool:
        return bool(self._one(text("SELECT pg_try_advisory_lock(:key) AS got"), key=BUILD_LOCK).got)

    def _configure(self, name: str, value: str) -> None:
        self._do(text("SELECT set_config(:name, :value, false)"), name=name, value=value)

    def _one(self, statement: Any, **parameters: Any) -> Any:
        return self._do(statement, **parameters).one_or_none()

    def _do(self, statement: Any, **parameters: Any) -> Any:
        if self._cancelled.is_set():
            raise BuildCancelled
        return self._connection.execute(statement, parameters)
