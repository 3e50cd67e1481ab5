"""Chat completions that rest on documents: what is put beside the answer of a model's server, or in its
place.

OpenAI's clients pass through what they do not know, so the passages stand beside OpenAI's own fields; of a
stream in a first chunk of ours, before those of the server, which stay as they are.
"""

import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.responses import Response

from api.answers.schemas import Annotation, Citation, Grounding
from api.answers.service import nothing_found
from api.chat.passing import STREAM_HEADERS
from db.errors import Unavailable
from db.ids import new_id

JSON = dict[str, Any]

# [1], and [1, 3] for two of them.
CITED = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
DONE = b"data: [DONE]\n\n"


def annotations_of(text: str, citations: Sequence[Citation]) -> tuple[list[Annotation], list[int]]:
    """Where a text cites passages, and the numbers that it cites and that it was not given."""
    by_number = {citation.number: citation for citation in citations}
    found, unknown = [], []
    for match in CITED.finditer(text):
        for number in map(int, match[1].split(",")):
            if number in by_number:
                found.append(_annotation(match, by_number[number]))
            elif number not in unknown:
                unknown.append(number)
    return found, unknown


def _annotation(match: re.Match[str], citation: Citation) -> Annotation:
    place = citation.model_dump(include={"number", "file_id", "filename", "first_page", "last_page"})
    return Annotation(text=match[0], start_index=match.start(), end_index=match.end(), file_citation=place)


def note_unknown(grounding: Grounding, unknown: Sequence[int]) -> None:
    if unknown:
        cited = ", ".join(f"[{number}]" for number in unknown)
        grounding.retrieval.notices.append(f"The answer cites {cited}, and was given no such passage.")


def with_grounding(raw: bytes, grounding: Grounding) -> bytes:
    """A server's answer with what it rests on.

    Raises:
        Unavailable: it is no answer.
    """
    try:
        answer: JSON = json.loads(raw)
        for choice in answer["choices"]:
            message = choice["message"]
            found, unknown = annotations_of(message.get("content") or "", grounding.citations)
            message["annotations"] = [
                *(message.get("annotations") or []), *(row.model_dump() for row in found),
            ]  # fmt: skip
            note_unknown(grounding, unknown)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unavailable(
            "The model's server gave an answer that is none.", code="bad_backend_answer"
        ) from error
    return json.dumps({**answer, **grounding.model_dump()}).encode()


def first_chunk(model: str, grounding: Grounding) -> bytes:
    """What goes before a server's chunks: no words, and what the words to come rest on."""
    return _event({**_chunk(model, new_id("chatcmpl"), [_delta(0, {})]), **grounding.model_dump()})


def answer_without_model(body: JSON, grounding: Grounding) -> Response:
    """The completion when nothing was found, in the form that was asked for."""
    text, completion_id = nothing_found(grounding), new_id("chatcmpl")
    number = body["n"] if isinstance(body.get("n"), int) and 0 < body["n"] <= 128 else 1
    if body.get("stream"):
        events = b"".join(_events(body, text, completion_id, number, grounding))
        return Response(events, media_type="text/event-stream", headers=STREAM_HEADERS)
    message: JSON = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    answer: JSON = {
        "id": completion_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": "stop"}
            for index in range(number)
        ],
        "usage": _usage(),
        **grounding.model_dump(),
    }
    return Response(json.dumps(answer), media_type="application/json")


def _events(body: JSON, text: str, completion_id: str, number: int, grounding: Grounding) -> Iterator[bytes]:
    model = body["model"]
    yield first_chunk(model, grounding)
    said = {"role": "assistant", "content": text}
    for index in range(number):
        yield _event(_chunk(model, completion_id, [_delta(index, said)]))
        yield _event(_chunk(model, completion_id, [_delta(index, {}, "stop")]))
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        yield _event({**_chunk(model, completion_id, []), "usage": _usage()})
    yield DONE


def _chunk(model: str, completion_id: str, choices: list[JSON]) -> JSON:
    return {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
    }


def _delta(index: int, delta: JSON, finish_reason: str | None = None) -> JSON:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _usage() -> JSON:
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _event(chunk: JSON) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"
