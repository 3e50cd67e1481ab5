"""Models that nobody has asked for a while leave their memory: a backend's `keep_alive`."""

import asyncio
import time
from collections import defaultdict

import structlog

from serving.backends.interface import Backend

# A backend that counts by itself is told how long, and not with every answer.
TELL_AGAIN_SECONDS = 30

log = structlog.get_logger(__name__)


class Idling:
    """Counts what each model has in hand, and unloads it once it has had nothing for `keep_alive` seconds."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._seconds = backend.config.keep_alive
        self._in_hand: defaultdict[str, int] = defaultdict(int)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._told: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, model: str) -> None:
        if self._seconds is None:
            return
        self._in_hand[model] += 1
        timer = self._timers.pop(model, None)
        if timer is not None:
            timer.cancel()

    def end(self, model: str) -> None:
        if self._seconds is None:
            return
        self._in_hand[model] -= 1
        if self._in_hand[model]:
            return
        del self._in_hand[model]
        if not self._backend.expires:
            loop = asyncio.get_running_loop()
            self._timers[model] = loop.call_later(self._seconds, self._start, model)
        elif time.monotonic() - self._told.get(model, -TELL_AGAIN_SECONDS) >= TELL_AGAIN_SECONDS:
            self._told[model] = time.monotonic()
            self._start(model)

    def _start(self, model: str) -> None:
        self._timers.pop(model, None)
        task = asyncio.create_task(self._see_to(model))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _see_to(self, model: str) -> None:
        try:
            if self._backend.expires:
                await self._backend.load(model, keep_seconds=self._seconds)
            elif await self._backend.is_answering(model):
                self.begin(model)
                self.end(model)  # not now: somebody else asks it
            else:
                await self._backend.unload(model)
                log.info("model_unloaded", backend=self._backend.config.name, model=model)
        except Exception as error:  # noqa: BLE001 - a class of the operator's own may raise anything
            log.warning(
                "keep_alive_failed", backend=self._backend.config.name, model=model, error=repr(error)
            )

    def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
