"""A backend of one's own: it says what it was told, in capitals and word by word.

    PYTHONPATH=examples LATHE_BACKENDS=backends.toml lathe up

where backends.toml has

    [echo]
    type = "own_backend:Echo"
    models = ["echo"]
    options = { pause_seconds = 0.05 }
"""

import asyncio
from collections.abc import AsyncIterator

from serving.backends.interface import Answer, Backend, Request, Usage, answer_with


class Echo(Backend):
    async def chat(self, request: Request) -> Answer:
        usage = Usage()
        return await answer_with(request, self._words(request, usage), usage)

    async def _words(self, request: Request, usage: Usage) -> AsyncIterator[str]:
        words = str(request.body["messages"][-1]["content"]).upper().split()
        usage.prompt = usage.completion = len(words)
        for word in words:
            await asyncio.sleep(self.config.options.get("pause_seconds", 0))
            yield f"{word} "

    async def models(self) -> list[str]:
        return ["echo"]
