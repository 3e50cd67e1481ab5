"""Reader processes: as many as there are cores, each started again when a file has ended it."""

import contextlib
import json
import math
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

from db.errors import LatheError
from retrieval.reader_process import ReaderProcess, has_one_thread

ANSWER_MOST_BYTES = 256 * 1024**2
READ_BYTES = 1 << 20
# A reader keeps what its libraries have not given back; a fresh one costs a quarter of a second.
TASKS_OF_A_READER = 200


class Unreadable(LatheError):
    """A document, or a part of it, cannot be read. `code` says why."""

    code = "invalid_file"


class ReaderDied(Unreadable):
    """The file has ended the process that read it."""

    code = "reader_died"


class TooSlow(Unreadable):
    code = "too_slow"


class Clock:
    """The time that a document has left. It runs while one reader or several are at it, and not while other
    documents have them all."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._since = 0.0
        self._readers = 0
        self._lock = threading.Lock()

    def left(self) -> float:
        with self._lock:
            return self._now_left()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._left += seconds

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def _change(self, readers: int) -> None:
        with self._lock:
            self._left, self._since = self._now_left(), time.monotonic()
            self._readers += readers

    def _now_left(self) -> float:
        return self._left - (time.monotonic() - self._since if self._readers else 0.0)


class Reader:
    """One process, started when it is first needed."""

    def __init__(self) -> None:
        self._process: ReaderProcess | None = None
        self._tasks = 0

    def copy(self) -> None:
        """Let it be a copy of this process until that has ended; what is started after it is new."""
        self._process = ReaderProcess(copied=True)

    def do(self, task: dict[str, Any], *, seconds: float) -> dict[str, Any]:
        """Let the process do a task.

        Raises:
            Unreadable: the file is at fault: refused, ended the process, or took longer than `seconds`.
        """
        if seconds <= 0:
            raise TooSlow("Reading it takes too long.")
        if self._tasks >= TASKS_OF_A_READER:
            self.end()
        if self._process is None:
            self._process = ReaderProcess(copied=False)
        self._tasks += 1
        try:
            answer = _ask(self._process, task, time.monotonic() + seconds)
        except Unreadable:
            self.end()
            raise
        if "error" in answer:
            error = answer["error"]
            if error["code"] == "out_of_memory":
                self.end()
            raise Unreadable(error["message"], code=error["code"])
        return answer

    def end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process, self._tasks = None, 0


def _ask(process: ReaderProcess, task: dict[str, Any], deadline: float) -> dict[str, Any]:
    try:
        process.tasks.write(json.dumps(task).encode() + b"\n")
        process.tasks.flush()
    except BrokenPipeError:
        raise _died(process) from None
    parts: list[bytes] = []
    received = 0
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.answers], [], [], left)[0]:
            raise TooSlow("Reading it takes too long.")
        chunk = os.read(process.answers, READ_BYTES)
        if not chunk:
            raise _died(process)
        parts.append(chunk)
        received += len(chunk)
        if received > ANSWER_MOST_BYTES:
            raise Unreadable("It unpacks to too much text.", code="file_too_large")
        if chunk.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(b"".join(parts))
            return answer


def _died(process: ReaderProcess) -> ReaderDied:
    code = process.wait()
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return ReaderDied(
        f"Reading it ended the process that read it ({how}): it is damaged, or takes too much memory."
    )


class Readers:
    """A pool of readers, for threads that each need one for the time of a task.

    Args:
        copies: so many are made now, of this process and all that it has loaded, if it has one thread yet.
            The others are started when they are first needed.
    """

    def __init__(self, number: int, *, copies: int = 0) -> None:
        self.number = number
        self._idle: queue.LifoQueue[Reader] = queue.LifoQueue()
        self._all = [Reader() for _ in range(number)]
        for reader in self._all:
            self._idle.put(reader)
        if copies and has_one_thread():
            for reader in self._all[-copies:]:  # the first to be taken
                reader.copy()

    def do(self, task: dict[str, Any], *, clock: "Clock", most_seconds: float = math.inf) -> dict[str, Any]:
        """Do a task by the next free reader, in the time that the clock has left by then.

        Raises:
            Unreadable: as `Reader.do` says.
        """
        with self.one() as reader, clock.running():
            return reader.do(task, seconds=min(most_seconds, clock.left()))

    @contextlib.contextmanager
    def one(self) -> Iterator[Reader]:
        """The next free reader, for the time of the block."""
        reader = self._idle.get()
        try:
            yield reader
        finally:
            self._idle.put(reader)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._all:
            reader.end()
