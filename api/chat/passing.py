"""A request passed on to the server that holds the model, and its answer passed back as it comes.

When the caller hangs up, before or amid the answer, the request to the server behind is closed, and that
server stops working on it.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import error_response
from api.unit_of_work import Services
from serving.openai_compatible import Upstream, forward

Answer = TypeVar("Answer")
ERROR_BYTES = 64 * 1024
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
TOO_LONG = "is too large to process"


async def pass_on(
    services: Services, request: Request, url: str, body: bytes, *, api_key: str, before: bytes = b""
) -> Response:
    """Send `body` to `url`; answer with the bytes that come back, or with their error in our shape.

    Args:
        before: events of ours, that go ahead of those of an answer that is a stream.
    """
    upstream = await unless_left(request, lambda: forward(services.client, url, body, api_key=api_key))
    if upstream.status >= 400:
        return await _error_of(upstream)
    return PassedOn(upstream, before)


async def unless_left(request: Request, work: Callable[[], Awaitable[Answer]]) -> Answer:
    """Wait for `work`, unless the caller goes first: then it is cancelled.

    Raises:
        ClientDisconnect: the caller has gone.
    """
    answers: list[Answer] = []
    errors: list[Exception] = []

    async def run(scope: anyio.CancelScope) -> None:
        try:
            answers.append(await work())
        except Exception as error:  # noqa: BLE001 - handed on below: a task group would wrap it
            errors.append(error)
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(run, group.cancel_scope)
        while (await request.receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()
    if errors:
        raise errors[0]
    if not answers:
        raise ClientDisconnect
    return answers[0]


class PassedOn(StreamingResponse):
    """An answer from behind. Its connection is freed however this one ends."""

    def __init__(self, upstream: Upstream, before: bytes = b"") -> None:
        headers = {"content-type": upstream.content_type}
        self.is_stream = upstream.content_type.startswith("text/event-stream")
        if self.is_stream:
            headers |= STREAM_HEADERS
        self._before = before if self.is_stream else b""
        super().__init__(self._chunks(), upstream.status, headers)
        self._upstream = upstream

    async def _chunks(self) -> AsyncIterator[bytes]:
        if self._before:
            yield self._before
        async with aclosing(self._upstream.chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk

    async def whole(self) -> bytes:
        """The answer's bytes, for who wants to read them rather than pass them on."""
        return b"".join([chunk async for chunk in self._upstream.chunks()])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._upstream.response.aclose()


async def _error_of(upstream: Upstream) -> Response:
    """The backend's error: its status and its message, in our shape."""
    body = b""
    async with aclosing(upstream.chunks()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            body += chunk
            if len(body) > ERROR_BYTES:
                break
    message, param, code = read_error(body, upstream.status)
    status = upstream.status
    if TOO_LONG in message:
        # llama-server says 500 of a text beyond its batch, and OpenAI's client would send it twice more.
        status, code = 400, "exceed_context_size_error"
    return error_response(status, message, code=code, param=param)


def read_error(body: bytes, status: int) -> tuple[str, str | None, str]:
    """What a server says is wrong: OpenAI's shape, llama-server's, Ollama's, or plain text."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = body.decode(errors="replace").strip()[:500]
    if isinstance(found, dict):
        found = found.get("error", found.get("message", found))
    detail = found if isinstance(found, dict) else {"message": found}
    message = detail.get("message") or f"The model's server answered with status {status}."
    param, code = detail.get("param"), detail.get("code")
    # llama-server gives the status once more as its code, and the real code as type.
    name = code if isinstance(code, str) else detail.get("type")
    return str(message), param if isinstance(param, str) else None, str(name or "backend_error")
