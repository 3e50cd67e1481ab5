"""A JSON body as it came, and its `model` replaced: every other byte stays as the caller wrote it.

Parsing and writing anew would keep the meaning but not the bytes (numbers such as 1.0e-5, spaces,
escapes), and what a caller sees in a backend's log should be what it sent.
"""

import json
import re
from dataclasses import dataclass
from json.decoder import JSONDecoder
from typing import Any

from db.errors import InvalidInput

_DECODER = JSONDecoder()
_WHITESPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Body:
    """A JSON object as text, its members, and where each `model` is in it."""

    text: str
    members: dict[str, Any]
    model_spans: tuple[tuple[int, int], ...]

    def with_model(self, name: str) -> bytes:
        text, quoted = self.text, json.dumps(name)
        for start, end in reversed(self.model_spans):
            text = text[:start] + quoted + text[end:]
        return text.encode()


def read_body(raw: bytes) -> Body:
    """Read a JSON object that names a `model`.

    Raises:
        InvalidInput: it is no JSON object, or `model` is not in it.
    """
    try:
        text = raw.decode()
        body = _scan(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    model = body.members.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput(
            "model is missing: give the name of a model, as GET /v1/models lists them.", param="model"
        )
    return body


def _scan(text: str) -> Body:
    """Walk over the members of the outermost object."""
    place = _blank(text, 0)
    if text[place : place + 1] != "{":
        raise ValueError("it must be an object")
    members: dict[str, Any] = {}
    spans: list[tuple[int, int]] = []
    place = _blank(text, place + 1)
    while text[place : place + 1] != "}":
        if members:
            place = _blank(text, _expect(text, place, ","))
        if text[place : place + 1] != '"':
            raise ValueError(f"a name is missing at character {place}")
        name, place = _DECODER.raw_decode(text, place)
        start = _blank(text, _expect(text, _blank(text, place), ":"))
        members[name], end = _DECODER.raw_decode(text, start)
        if name == "model":
            spans.append((start, end))
        place = _blank(text, end)
    if text[place + 1 :].strip(" \t\r\n"):
        raise ValueError(f"something follows it at character {place + 1}")
    return Body(text, members, tuple(spans))


def _blank(text: str, place: int) -> int:
    match = _WHITESPACE.match(text, place)
    return match.end() if match else place


def _expect(text: str, place: int, character: str) -> int:
    if text[place : place + 1] != character:
        raise ValueError(f"{character!r} is missing at character {place}")
    return place + 1
