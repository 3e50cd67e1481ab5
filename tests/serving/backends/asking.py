"""A backend asked from a test that is not async itself."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from serving.backends.configuration import BackendConfig
from serving.backends.guarding import Guarded, Route
from serving.backends.interface import Backend, request_of
from serving.backends.openai_server import OpenAIServer
from serving.openai_compatible import make_async_client

Result = TypeVar("Result")


def with_backend(
    url: str,
    work: Callable[[Guarded], Awaitable[Result]],
    *,
    kind: type[Backend] = OpenAIServer,
    **settings: Any,
) -> Result:
    """Do something with a guarded backend on an event loop of its own."""

    async def run() -> Result:
        config = BackendConfig.model_validate({"name": "there", "type": "openai", "url": url, **settings})
        async with make_async_client() as client:
            guarded = Guarded(kind(config, client))
            try:
                return await work(guarded)
            finally:
                await guarded.close()

    return asyncio.run(run())


async def ask(guarded: Guarded, model: str, *, route: Route = "chat", **body: Any) -> tuple[int, bytes]:
    """A whole answer: its status and its bytes."""
    answer = await guarded.ask(route, request_of(model, {"messages": [], **body}))
    try:
        return answer.status, b"".join([chunk async for chunk in answer.chunks])
    finally:
        await answer.close()
