"""What workers ask of the step, and its answers. Ray makes it an actor; pieces of files pass through it one
by one, so that its memory and Ray's object store hold a few of them and never a whole model.
"""

import asyncio
import itertools
from contextlib import suppress
from typing import Any

Request = dict[str, Any]


class Mailbox:
    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._asked: list[tuple[int, Request]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._arrived, self._stopping = asyncio.Event(), asyncio.Event()

    async def ask(self, request: Request) -> Any:
        """Wait for the step's answer."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._asked.append((number, request))
        self._arrived.set()
        try:
            return await answer
        finally:
            del self._answers[number]

    async def take(self, seconds: float) -> list[tuple[int, Request]]:
        """What was asked since, in its order; waits so long for the first. The step alone takes."""
        if not self._asked:
            self._arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait(), seconds)
        taken, self._asked = self._asked, []
        return taken

    async def answer(self, number: int, reply: Any) -> None:
        asker = self._answers.get(number)
        if asker is not None and not asker.done():  # a worker that was killed waits no more
            asker.set_result(reply)

    async def stop(self) -> None:
        """Let the workers know that they shall save and stop."""
        self._stopping.set()

    async def stopped(self) -> None:
        await self._stopping.wait()
