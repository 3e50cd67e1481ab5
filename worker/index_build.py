"""The step `index` of an ingest, as its worker watches it: what a `Child` is to the other steps.

It has no process of its own, since Postgres does the work: a thread of the worker waits for it, on a
connection of its own. So no step's process needs the database's password, and a small collection costs a few
statements. If the worker dies, Postgres notices within seconds that the connection is gone and gives the
build up; what it leaves is dropped by whoever builds next, or keeps house.
"""

import threading
import time
import traceback
from queue import Empty, SimpleQueue
from signal import SIGTERM

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from db.settings import Settings
from retrieval.vector_index import PROGRESS, BuildCancelled, IndexBuilder, IndexPolicy
from worker.child import TERM_GRACE_SECONDS, Exit
from worker.run_step import write_manifest
from worker.step import Message, StepInput

INDEX_STEP = ("ingest", "index")


def index_policy(settings: Settings) -> IndexPolicy:
    return IndexPolicy(
        smallest=settings.vector_index_min_chunks, memory_bytes=settings.vector_index_memory_bytes
    )


class IndexBuild:
    """Brings the index of an ingest's collection up to date. `exit` is None while that goes on."""

    pid = None

    def __init__(self, engine: Engine, step_input: StepInput, policy: IndexPolicy) -> None:
        self._engine = engine
        self._input = step_input
        self._policy = policy
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._ended = threading.Event()
        self._outcome: Exit | None = None
        self._builder: IndexBuilder | None = None
        self._stopping = False
        self._progress = -1
        self.exit: Exit | None = None
        self.tail = ""
        self._thread = threading.Thread(target=self._run, name="index", daemon=True)
        self._thread.start()

    def renew(self, deadline: float) -> None:
        """Its worker ends it when the lease is lost; nobody but the one builder can harm an index."""

    def listen(self, seconds: float) -> list[Message]:
        """Wait up to `seconds`, and give what there is to tell."""
        if not self._ended.wait(seconds):
            self._look()
        self.exit = self._outcome
        messages: list[Message] = []
        while True:
            try:
                messages.append(self._messages.get_nowait())
            except Empty:
                return messages

    def ask_to_stop(self) -> None:
        self._stopping = True
        if self._builder is not None:
            self._builder.cancel()

    def end(self, grace_seconds: float = TERM_GRACE_SECONDS) -> list[Message]:
        """Stop it, and give the last messages."""
        messages: list[Message] = []
        deadline = time.monotonic() + grace_seconds
        while True:
            self.ask_to_stop()
            messages += self.listen(0.1)
            if self.exit is not None or time.monotonic() >= deadline:
                break
        # A thread that hangs has no lease any more, and its connection ends with it or the worker.
        self.exit = self.exit or Exit(None, SIGTERM)
        return messages

    def close(self) -> None:
        if self.exit is None:
            self.end()

    def _run(self) -> None:
        outcome = Exit(1, None)
        try:
            self._refresh()
            outcome = Exit(0, None)
        except BuildCancelled:
            outcome = Exit(None, SIGTERM)
        except Exception as error:  # noqa: BLE001 - the edge of a step: it is its last word
            # Postgres answers a cancel by an error, too.
            if self._stopping:
                outcome = Exit(None, SIGTERM)
            self.tail = traceback.format_exc() if not isinstance(error, DBAPIError) else str(error.orig)
        finally:
            self._outcome = outcome
            self._ended.set()

    def _refresh(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # Not to be lent to anybody else: closing it is what ends the builder's lock for certain.
            connection.detach()
            self._builder = IndexBuilder(connection, self._policy, self._event)
            if self._stopping:
                raise BuildCancelled
            refreshed = self._builder.refresh(self._input.params["collection"])
        self._event(refreshed.message)
        write_manifest(self._input.folder)
        index = {"chunks": refreshed.chunks, "built_in_seconds": refreshed.seconds}
        self._messages.put({"type": "result", "result": {**self._input.results["embed"], "index": index}})

    def _event(self, message: str) -> None:
        self._messages.put({"type": "event", "level": "info", "message": message, "data": {}})

    def _look(self) -> None:
        """Say how far Postgres is. No news is no sign of life, unless another builder has its turn: it makes
        progress, or else is ended by its own worker."""
        builder = self._builder
        if builder is not None and builder.waiting:
            self._progressed(0, self._input.results["embed"]["chunks"])
        if builder is None or not builder.building_chunks:
            return
        try:
            with self._engine.connect() as connection:
                row = connection.execute(PROGRESS, {"pid": builder.pid}).one_or_none()
        except DBAPIError:
            return  # who builds will notice
        if row is not None and row.tuples_done != self._progress:
            self._progress = row.tuples_done
            self._progressed(min(row.tuples_done, builder.building_chunks), builder.building_chunks)

    def _progressed(self, done: int, total: int) -> None:
        message = {"type": "progress", "done": done, "total": total, "eta_seconds": None, "unit": "chunks"}
        self._messages.put(message)
