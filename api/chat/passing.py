"""A request passed on to the backend that has the model, and its answer passed back: a stream as it comes,
anything else once it is whole.

When the caller hangs up, before or amid the answer, the request to the backend is closed, and it stops
working on it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from serving.backends import interface
from serving.backends.guarding import Route
from serving.backends.target import Target
from serving.openai_compatible import read_error

Answer = TypeVar("Answer")
ERROR_BYTES = 64 * 1024
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
TOO_LONG = "is too large to process"


async def pass_on(
    request: Request,
    target: Target,
    route: Route,
    make: Callable[[str], interface.Request],
    *,
    before: bytes = b"",
) -> Response:
    """Ask a model's backend; answer with the bytes that come back, or with their error in our shape.

    Args:
        make: the request, for a backend that knows the model by this name.
        before: events of ours, that go ahead of those of an answer that is a stream.
    """
    answer, content = await unless_left(request, lambda: begin(target, route, make))
    if content is None:
        return PassedOn(answer, before)
    if answer.status >= 400:
        return error_of(answer, content)
    return Response(content, answer.status, {"content-type": answer.content_type})


async def begin(
    target: Target, route: Route, make: Callable[[str], interface.Request]
) -> tuple[interface.Answer, bytes | None]:
    """Ask, and read the answer to its end unless it is a stream.

    Raises:
        Unavailable: nobody answers, or breaks off before the end.
    """
    answer = await target.ask(route, make)
    if answer.is_stream and answer.status < 400:
        return answer, None
    content = bytearray()
    try:
        async for chunk in answer.chunks:
            content += chunk
            if answer.status >= 400 and len(content) > ERROR_BYTES:
                break
    finally:
        await answer.close()
    return answer, bytes(content)


async def unless_left(request: Request, work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Wait for `work`, unless the caller goes first: then it is cancelled.

    Raises:
        ClientDisconnect: the caller has gone.
    """
    return await _while_there(request.receive, work)


async def _while_there(receive: Receive, work: Callable[[], Awaitable[Answer]]) -> Answer:
    # One task more and no group of tasks, which would be three of anyio's before each first token.
    asking, left = asyncio.current_task(), False
    assert asking is not None  # noqa: S101 - for the type checker

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        asking.cancel()  # who waits within `work` just now: what comes after it ends the watch first

    watching = asyncio.create_task(watch())
    try:
        return await work()
    except asyncio.CancelledError:
        if left and asking.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()


class PassedOn(StreamingResponse):
    """A stream from behind. What it holds is freed however this one ends."""

    def __init__(self, answer: interface.Answer, before: bytes = b"") -> None:
        self._answer, self._before = answer, before
        super().__init__(
            self._chunks(), answer.status, {"content-type": answer.content_type, **STREAM_HEADERS}
        )

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self._before:
            yield self._before
        async with aclosing(self._answer.chunks) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientDisconnect):
                await _while_there(receive, lambda: self.stream_response(send))
        finally:
            await self._answer.close()


def error_of(answer: interface.Answer, body: bytes) -> Response:
    """The backend's error: its status and its message, in our shape."""
    message, param, code = read_error(body, answer.status)
    status, again = answer.status, answer.retry_after_seconds
    if TOO_LONG in message:
        # llama-server says 500 of a text beyond its batch, and OpenAI's client would send it twice more.
        status, code = 400, "exceed_context_size_error"
    headers = {"retry-after": str(again)} if again is not None else None
    return error_response(status, message, code=code, param=param, headers=headers)
