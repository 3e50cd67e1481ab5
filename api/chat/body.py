"""A JSON body as it came, and single members of it replaced: all others stay, byte for byte, as the caller
wrote them.

Parsing and writing anew would keep the meaning but not the bytes (numbers such as 1.0e-5, spaces,
escapes), and what a caller sees in a backend's log should be what it sent.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from json.decoder import JSONDecoder
from typing import Any

from db.errors import InvalidInput

_DECODER = JSONDecoder()
_WHITESPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Place:
    """Where a member is: its name from `start`, its value from `value_start` to before `end`."""

    name: str
    start: int
    value_start: int
    end: int


@dataclass(frozen=True)
class Body:
    """A JSON object as text, its members, and where each is in it."""

    text: str
    members: dict[str, Any]
    places: tuple[Place, ...]

    def with_model(self, name: str) -> bytes:
        text, quoted = self.text, json.dumps(name)
        for place in reversed(self.places):
            if place.name == "model":
                text = text[: place.value_start] + quoted + text[place.end :]
        return text.encode()

    def with_members(self, replaced: Mapping[str, Any], *, without: Collection[str]) -> bytes:
        """The same object with other values for some of its members, and without others."""
        kept = [
            self.text[place.start : place.value_start] + json.dumps(replaced[place.name])
            if place.name in replaced
            else self.text[place.start : place.end]
            for place in self.places
            if place.name not in without
        ]
        return ("{" + ", ".join(kept) + "}").encode()


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
    places: list[Place] = []
    place = _blank(text, place + 1)
    while text[place : place + 1] != "}":
        if members:
            place = _blank(text, _expect(text, place, ","))
        if text[place : place + 1] != '"':
            raise ValueError(f"a name is missing at character {place}")
        name, after = _DECODER.raw_decode(text, place)
        value_start = _blank(text, _expect(text, _blank(text, after), ":"))
        members[name], end = _DECODER.raw_decode(text, value_start)
        places.append(Place(name, place, value_start, end))
        place = _blank(text, end)
    if text[place + 1 :].strip(" \t\r\n"):
        raise ValueError(f"something follows it at character {place + 1}")
    return Body(text, members, tuple(places))


def _blank(text: str, place: int) -> int:
    match = _WHITESPACE.match(text, place)
    return match.end() if match else place


def _expect(text: str, place: int, character: str) -> int:
    if text[place : place + 1] != character:
        raise ValueError(f"{character!r} is missing at character {place}")
    return place + 1
