"""POST /agenerate: an answer's text as server-sent events, a piece each, as it comes.

The pieces are bare text, and the last one is followed by nothing: the connection's end is the answer's. An
error amid the answer is an event of the type `error`; passages are told by one of the type `grounding`,
before the first piece.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from api.chat.generation import answer as read_answer
from api.chat.passing import STREAM_HEADERS, PassedOn, begin, error_of, unless_left
from db.errors import Unavailable
from serving.backends import interface
from serving.backends.guarding import broken_event
from serving.backends.interface import EVENT_STREAM
from serving.backends.target import Target

DATA = b"data:"
DONE = b"[DONE]"
# What ends a line of an event; str.splitlines knows more of them.
LINE_END = re.compile(r"\r\n|\r|\n")


def text_event(text: str) -> bytes:
    """A piece of text as an event. Its lines are lines of the event, which a client puts together again."""
    return "".join(f"data: {line}\n" for line in LINE_END.split(text)).encode() + b"\n"


def named_event(name: str, content: BaseModel) -> bytes:
    return f"event: {name}\ndata: {content.model_dump_json()}\n\n".encode()


def whole_stream(*events: bytes) -> Response:
    """A stream of which all is known."""
    return Response(b"".join(events), headers=STREAM_HEADERS, media_type=EVENT_STREAM)


async def stream_text(
    request: Request, target: Target, make: Callable[[str], interface.Request], *, before: bytes = b""
) -> Response:
    """Ask a model's backend, and answer with the text alone; an error before its first byte keeps its status.

    Args:
        make: the question, which asks for a stream, for a backend that knows the model by this name.
    """
    answer, content = await unless_left(request, lambda: begin(target, "chat", make))
    if content is None:
        return TextStream(answer, before)
    if answer.status >= 400:
        return error_of(answer, content)
    return whole_stream(before, text_event(read_answer(content, model="").text))  # it does not stream


class TextStream(PassedOn):
    """The text out of a stream of OpenAI's chunks."""

    async def _chunks(self) -> AsyncIterator[bytes]:
        async with aclosing(super()._chunks()) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                for event in _events_of(chunk):
                    yield event


def _events_of(chunk: bytes) -> Iterator[bytes]:
    """Whole events of a server's, as ours."""
    if chunk.startswith(b"event:"):
        yield chunk  # the one of ours that goes before
        return
    for line in chunk.splitlines():
        data = line.removeprefix(DATA).strip()
        if line.startswith(DATA) and data != DONE:
            yield _event_of(data)


def _event_of(data: bytes) -> bytes:
    try:
        said: dict[str, Any] = json.loads(data)
        if "error" in said:
            return b"event: error\ndata: " + data + b"\n\n"
        pieces = [choice["delta"].get("content") for choice in said["choices"]]
        return b"".join(text_event(piece) for piece in pieces if piece)
    except (ValueError, LookupError, TypeError, AttributeError):
        broken = Unavailable("The model's server gave an answer that is none.", code="bad_backend_answer")
        return b"event: error\n" + broken_event(broken)
