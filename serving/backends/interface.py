"""What a backend is: whoever answers prompts, embeds texts, and may be told to load and unload its models.

To bring your own, derive from `Backend`, write `chat`, and name the class in the operator's file as
`module:Class` (docs/how-to/backends.md). What it does not write is refused with a clear message. Limits,
times, retries and hanging up are not its business: whoever asks through `guarding` has them for any backend.
"""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from db.errors import InvalidInput
from db.ids import new_id
from serving.backends.configuration import BackendConfig
from serving.context_window import DEFAULT_WINDOW, BoundGauge, Gauge

JSON = dict[str, Any]
EVENT_STREAM = "text/event-stream"
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Request:
    """What a model is asked.

    Args:
        model: its name with this backend.
        body: OpenAI's fields, and whatever else the caller sent; `model` in it is the caller's name.
        content: the same as bytes, with the backend's name; what the caller wrote stays as it was written.
    """

    model: str
    body: JSON
    content: bytes = field(repr=False)

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def tells_usage(self) -> bool:
        """Whether the last chunk of a stream is to tell it."""
        options = self.body.get("stream_options")
        return isinstance(options, dict) and bool(options.get("include_usage"))


def request_of(model: str, body: JSON) -> Request:
    """A request of our own making."""
    return Request(model, body, json.dumps({**body, "model": model}).encode())


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Answer:
    """An answer that has begun.

    Args:
        chunks: its body as it comes; of a stream, events of OpenAI's shape that end with `data: [DONE]`.
        close: frees what it holds. Called once, also when nobody wants the rest.
        retry_after_seconds: when to ask again, where the backend says so.
    """

    status: int
    content_type: str
    chunks: AsyncIterator[bytes]
    close: Callable[[], Any] = _nothing
    retry_after_seconds: int | None = None

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith(EVENT_STREAM)


@dataclass
class Usage:
    """How many tokens an answer took, where that is known. A backend may fill it in while it answers."""

    prompt: int | None = None
    completion: int | None = None
    finish_reason: str = "stop"

    def as_json(self) -> JSON:
        prompt, completion = self.prompt or 0, self.completion or 0
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Backend:
    """Whoever answers prompts. One object a process; its methods run side by side on one event loop.

    Args:
        config: its entry in the operator's file: `url`, `key`, `options` and the rest.
        client: for HTTP; all backends share it.
    """

    # Whether `load` with `keep_seconds` lets the backend unload by itself when that time is over.
    expires = False
    # Whether it gives `n` answers, and answers several prompts, by itself. Else it is asked for each.
    gives_choices = False

    def __init__(self, config: BackendConfig, client: httpx.AsyncClient) -> None:
        self.config = config
        self.client = client

    def adapted(self, request: Request) -> Request:
        """A request of chat or completions in this backend's words.

        Raises:
            InvalidInput: it has a field that this backend would pass over.
        """
        return request

    async def chat(self, request: Request) -> Answer:
        """Answer a conversation, as POST /v1/chat/completions is: `answer_with` gives a text that shape.

        Raises:
            Unavailable, or any error of `httpx`: nobody is there. InvalidInput, NotFound: what was asked
            cannot be answered.
        """
        raise self._refusal("chat")

    async def complete(self, request: Request) -> Answer:
        """Go on with a text, as POST /v1/completions does."""
        raise self._refusal("complete")

    async def embed(self, request: Request) -> Answer:
        """Embed texts, as POST /v1/embeddings does."""
        raise self._refusal("embed")

    async def load(self, model: str, *, keep_seconds: float | None = None) -> None:
        """Bring a model into memory before somebody asks it."""
        raise self._refusal("load")

    async def unload(self, model: str) -> None:
        """Let go of a model's memory. What is being answered ends first, or the caller has seen to that."""
        raise self._refusal("unload")

    async def is_answering(self, model: str) -> bool:
        """Whether somebody who did not ask through us would be cut off by `unload`."""
        return False

    async def health(self) -> None:
        """Return if it can be asked now, within a second or two.

        Raises:
            Unavailable, or any error of `httpx`: it cannot.
        """

    async def models(self) -> list[str]:
        """The models that it has by itself, by its own names."""
        return []

    async def gauge(self, model: str) -> Gauge:
        """How long a prompt may be, and how tokens are counted."""
        return BoundGauge(self.config.context_window or DEFAULT_WINDOW)

    async def close(self) -> None:
        """Called once, when the process ends."""

    def _refusal(self, what: str) -> InvalidInput:
        return InvalidInput(
            f"The backend {self.config.name!r} cannot {what}.", param="model", code="not_supported"
        )


# --- for backends whose words are not OpenAI's --------------------------------------------------------


async def answer_with(
    request: Request, pieces: AsyncIterator[str], usage: Usage | None = None, *, chat: bool = True
) -> Answer:
    """Put a text that comes in pieces into OpenAI's shape, as a stream if that was asked for.

    Args:
        usage: read once the last piece has come.
        chat: as an answer of chat; else of completions.
    """
    usage = usage or Usage()
    shape = _Shape(request, chat)
    if request.streams:
        return Answer(200, EVENT_STREAM, shape.events(pieces, usage), getattr(pieces, "aclose", _nothing))
    return json_answer(shape.whole("".join([piece async for piece in pieces]), usage))


def json_answer(body: JSON, status: int = 200) -> Answer:
    async def chunks() -> AsyncIterator[bytes]:
        yield json.dumps(body).encode()

    return Answer(status, "application/json", chunks())


def error_answer(status: int, message: str, *, code: str = "backend_error") -> Answer:
    """An error of the backend's, with its own status."""
    return json_answer({"error": {"message": message, "type": None, "param": None, "code": code}}, status)


@dataclass(frozen=True)
class _Shape:
    request: Request
    chat: bool
    id: str = field(default_factory=lambda: new_id("chatcmpl"))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, usage: Usage) -> JSON:
        said: JSON = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": usage.finish_reason}
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [choice], "usage": usage.as_json()}

    async def events(self, pieces: AsyncIterator[str], usage: Usage) -> AsyncIterator[bytes]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        first: JSON = {"role": "assistant"} if self.chat else {}
        async for piece in pieces:
            said: JSON = {"delta": {**first, "content": piece}} if self.chat else {"text": piece}
            first = {}
            yield self._event(kind, [{"index": 0, **said, "logprobs": None, "finish_reason": None}])
        said = {"delta": first} if self.chat else {"text": ""}
        last = {"index": 0, **said, "logprobs": None, "finish_reason": usage.finish_reason}
        for event in self._ends(kind, last, usage):
            yield event

    def _ends(self, kind: str, last: JSON, usage: Usage) -> Iterator[bytes]:
        yield self._event(kind, [last])
        if self.request.tells_usage:
            yield self._event(kind, [], usage=usage.as_json())
        yield DONE

    def _event(self, kind: str, choices: list[JSON], **more: Any) -> bytes:
        chunk = {**self._head(kind), "choices": choices, **more}
        return b"data: " + json.dumps(chunk).encode() + b"\n\n"

    def _head(self, kind: str) -> JSON:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}
