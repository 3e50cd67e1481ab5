"""Ends a wait that goes on for too long, by one timer for a whole stream.

`asyncio.timeout` around each chunk would do the same at 4 µs a chunk; this takes a tenth of that.
"""

import asyncio
from types import TracebackType
from typing import Any, Self


class Silence:
    """Entered around each wait; raises TimeoutError out of one that lasts `seconds`, perhaps twice as long.

    `stop` when no more is waited for.
    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._waiting: asyncio.Task[Any] | None = None
        self._waits = self._seen = 0
        self._expired = False
        self._timer = self._loop.call_later(seconds, self._look)

    def __enter__(self) -> Self:
        self._waits += 1
        self._waiting = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._waiting = self._waiting, None
        if self._expired and kind is asyncio.CancelledError and task is not None and task.uncancel() == 0:
            raise TimeoutError from error

    def _look(self) -> None:
        # The same wait as a whole period ago: it has lasted for that long at least.
        if self._waiting is not None and self._seen == self._waits:
            self._expired = True
            self._waiting.cancel()
            return
        self._seen = self._waits
        self._timer = self._loop.call_later(self._seconds, self._look)

    def stop(self) -> None:
        self._timer.cancel()
