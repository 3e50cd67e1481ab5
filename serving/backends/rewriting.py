"""Answers that are read on their way, and changed: whole, or event by event."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from db.errors import Unavailable
from serving.backends.interface import JSON, Answer, Request

Change = Callable[[JSON], JSON]
DONE = b"[DONE]"
BROKEN = "The server that runs this model gave an answer that is none."


def rewritten(answer: Answer, change: Change) -> Answer:
    """An answer whose JSON, or each chunk's, goes through `change`. Errors stay as they are."""
    if answer.status >= 400:
        return answer
    return replace(answer, chunks=_events(answer, change) if answer.is_stream else _whole(answer, change))


def named_as_asked(request: Request) -> Callable[[bytes], bytes]:
    """Puts the name by which the caller asked where an answer's bytes have the backend's own for the model.

    Nothing is parsed: within a JSON text the quotes would be escaped.
    """
    asked, own = request.body.get("model"), request.model
    if not isinstance(asked, str) or asked == own:
        return lambda content: content
    # As nlohmann's and Go's writers have it, and as Python's.
    pairs = [(f'"model":{blank}{json.dumps(own)}'.encode(), blank) for blank in ("", " ")]
    named = {old: f'"model":{blank}{json.dumps(asked)}'.encode() for old, blank in pairs}

    def rename(content: bytes) -> bytes:
        for old, new in named.items():
            content = content.replace(old, new)
        return content

    return rename


class TextLogprobs:
    """The log probabilities of completions as OpenAI has them, from those of chat, which llama-server gives.

    Called for the chunks of one answer, in their order.
    """

    def __init__(self) -> None:
        self._offset = 0

    def __call__(self, said: JSON) -> JSON:
        return {**said, "choices": [self._choice(choice) for choice in said.get("choices") or []]}

    def _choice(self, choice: JSON) -> JSON:
        rows = (choice.get("logprobs") or {}).get("content")
        if rows is None:
            return choice
        offsets = []
        for row in rows:
            offsets.append(self._offset)
            self._offset += len(row["token"])
        logprobs = {
            "tokens": [row["token"] for row in rows],
            "token_logprobs": [row["logprob"] for row in rows],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in row.get("top_logprobs") or []} for row in rows
            ],
            "text_offset": offsets,
        }
        return {**choice, "logprobs": logprobs}


async def _whole(answer: Answer, change: Change) -> AsyncIterator[bytes]:
    yield json.dumps(change(await read_whole(answer))).encode()


async def _events(answer: Answer, change: Change) -> AsyncIterator[bytes]:
    async for chunk in read_events(answer):
        yield event_of(chunk if "error" in chunk else change(chunk))
    yield b"data: [DONE]\n\n"


async def read_whole(answer: Answer) -> JSON:
    """Raise Unavailable for what is no JSON object."""
    return _parsed(b"".join([chunk async for chunk in answer.chunks]))


async def read_events(answer: Answer) -> AsyncIterator[JSON]:
    """The chunks of a stream, up to `[DONE]`.

    Raises:
        Unavailable: one is no JSON object, or the stream ends before its end.
    """
    held = b""
    async with aclosing(answer.chunks) as parts:  # type: ignore[type-var]
        async for part in parts:
            *lines, held = (held + part).split(b"\n")
            for line in lines:
                name, _, data = line.partition(b":")
                if name != b"data":
                    continue
                if data.strip() == DONE:
                    return
                yield _parsed(data)
    raise Unavailable("The server that runs this model stopped in mid-answer.")


def event_of(chunk: JSON) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _parsed(data: bytes) -> JSON:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Unavailable(BROKEN, code="bad_backend_answer") from error
    if not isinstance(found, dict):
        raise Unavailable(BROKEN, code="bad_backend_answer")
    return found
