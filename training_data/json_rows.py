"""Rows as JSON objects: one a line, or one after another in an array; each of bounded length."""

import json
import re
from collections.abc import Iterator
from typing import Any

from db.errors import InvalidInput
from training_data.text_files import MAX_LINE_CHARACTERS

BETWEEN_OBJECTS = re.compile(r"[ \t\r\n,]*")


def load_json(line: str, number: int, param: str) -> dict[str, Any]:
    """Read the object that a line holds."""
    try:
        record = _DECODER.decode(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"Line {number} is no JSON: {_why(error)}. Each line holds one object.", param=param
        ) from None
    if not isinstance(record, dict):
        raise InvalidInput(f"Line {number} is no JSON object: each line holds one.", param=param)
    return record


def jsonl_rows(lines: Iterator[str], param: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file that has one on each line, with their lines."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, load_json(line, number, param)


def json_rows(blocks: Iterator[str], param: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of an array, or of a file with one after another, with the lines in which they begin.

    Args:
        blocks: the file's text, in pieces of whatever length.
    Raises:
        InvalidInput: it is no JSON, or holds something else; the message names row and line.
    """
    text = _Text(blocks)
    in_array = text.first_is("[")
    row = 0
    while not text.ended():
        if in_array and text.first_is("]"):
            if text.ended():
                return
            raise InvalidInput(f"Line {text.line}: there is more after the array's end.", param=param)
        row += 1
        line = text.line
        try:
            record = text.take()
        except (ValueError, RecursionError) as error:
            raise InvalidInput(
                f"Row {row}, which begins in line {line}, is no JSON: {_why(error)}.", param=param
            ) from None
        if not isinstance(record, dict):
            raise InvalidInput(
                f"Row {row}, in line {line}, is no JSON object: give an array of objects.", param=param
            )
        yield line, record
    if in_array:
        raise InvalidInput(
            f"The array is not closed: the file is cut off after row {row}, in line {text.line}.", param=param
        )


class _Text:
    """A text of which only the value being read is held."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._held = ""
        self._at = 0
        self.line = 1  # of what is read next

    def ended(self) -> bool:
        """Whether nothing is left but what stands between objects."""
        while True:
            passed = BETWEEN_OBJECTS.match(self._held, self._at)
            self._advance(passed.end() if passed else self._at)
            if self._at < len(self._held):
                return False
            if not self._read_on():
                return True

    def first_is(self, character: str) -> bool:
        """Whether it comes first, and if so pass over it."""
        if self.ended() or self._held[self._at] != character:
            return False
        self._advance(self._at + 1)
        return True

    def take(self) -> Any:
        """The next value.

        Raises:
            ValueError, RecursionError: there is none that json reads, or it is too long.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                # It may only be incomplete.
                if len(self._held) - self._at <= MAX_LINE_CHARACTERS and self._read_on():
                    continue
                line = self.line + self._held.count("\n", self._at, error.pos)
                raise ValueError(f"{error.msg}, in line {line}") from None
            self._advance(end)
            return value

    def _read_on(self) -> bool:
        """Hold twice as much: a long value is not read anew for each of its blocks."""
        held = self._held[self._at :]
        parts, length = [held], len(held)
        for block in self._blocks:
            parts.append(block)
            length += len(block)
            if length >= 2 * len(held):
                break
        self._held, self._at = "".join(parts), 0
        return length > len(held)

    def _advance(self, to: int) -> None:
        self.line += self._held.count("\n", self._at, to)
        self._at = to


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that is there twice json would keep the last without a word."""
    record = dict(pairs)
    if len(record) != len(pairs):
        seen: set[str] = set()
        doubled = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {doubled[:80]!r} twice; keep one")
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_no_doubles)


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, at its character {error.pos + 1}"
    return str(error)
