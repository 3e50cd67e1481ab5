"""Uploaded training files: CSV and JSONL, as conversations.

Everything streams: `check_file` looks at a file's beginning and is what a submit may cost, `read_rows`
reads all of it. Each error names the line.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.chat_templates import UNWEIGHTED, WEIGHT, Chat
from training_data.messages import is_text, read_message
from training_data.preferences import PAIRS, pair_keys, read_pair, unused
from training_data.text_files import (
    DELIMITERS,
    HEAD_BYTES,
    csv_rows,
    detect_encoding,
    is_jsonl,
    load_json,
    open_lines,
    refuse_binary,
)

PARAM = "training_file"
CHECKED_ROWS = 200  # what a submit looks at, or
CHECKED_CHARACTERS = 1024 * 1024


@dataclass(frozen=True)
class ColumnSet:
    """A pair of columns, or of JSON keys, that makes a conversation."""

    question: str
    answer: str
    system: str | None = None

    @property
    def name(self) -> str:
        return f"{self.question},{self.answer}"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.question, self.answer, *([self.system] if self.system else []))

    def __str__(self) -> str:
        return self.name + (f"[,{self.system}]" if self.system else "")


COLUMN_SETS = (
    ColumnSet("question", "answer"),
    ColumnSet("input", "output", "system"),
    ColumnSet("prompt", "completion"),
)
ACCEPTED = " | ".join(map(str, COLUMN_SETS))
MESSAGES = "messages"


@dataclass(frozen=True)
class DetectedFormat:
    """How a file is to be read.

    Args:
        kind: "csv" or "jsonl".
        columns: "question,answer" and so on, "messages", or the keys of a preference pair.
        encoding: as Python names it.
        delimiter: between a CSV's columns; empty for JSONL.
        ignored_columns: of the header, or of the first JSON object, what no conversation is made of.
    """

    kind: str
    columns: str
    encoding: str
    delimiter: str = ""
    ignored_columns: tuple[str, ...] = ()

    @property
    def holds_pairs(self) -> bool:
        return self.columns in PAIRS


@dataclass(frozen=True)
class Row:
    """A conversation and the line it begins on, counted from 1.

    Args:
        rejected: of a preference pair, the answer that is less good than the conversation's last.
    """

    line: int
    messages: Chat
    rejected: str | None = None


def check_file(path: Path, filename: str, *, param: str = PARAM) -> DetectedFormat:
    """Check a file's header and first rows, in flat time and memory however large it is.

    Raises:
        InvalidInput: it is empty or no text, no columns fit, or one of the first rows is wrong.
    """
    detected = detect_format(path, filename, param=param)
    checked = characters = 0
    with open_lines(path, detected.encoding, param) as lines:
        for row in _rows(lines, detected, param):
            checked += 1
            characters += sum(len(message["content"]) for message in row.messages)
            if checked >= CHECKED_ROWS or characters >= CHECKED_CHARACTERS:
                break
    if checked == 0:
        raise InvalidInput(f"{filename} has a header but no rows.", param=param)
    return detected


def check_method(detected: DetectedFormat, method: str, filename: str, *, param: str = PARAM) -> None:
    """See that a file holds what a method learns from.

    Raises:
        InvalidInput: it does not.
    """
    if method == "dpo" and not detected.holds_pairs:
        raise InvalidInput(
            f"{filename} has {detected.columns}, and dpo learns from pairs of answers: give each row "
            f"{' or '.join(PAIRS)}.",
            param=param,
        )
    if method != "dpo" and detected.holds_pairs:
        raise InvalidInput(
            f"{filename} has pairs of answers ({detected.columns}), which the method {method} does not learn "
            'from: train by the method "dpo".',
            param=param,
        )


def read_rows(path: Path, detected: DetectedFormat, *, param: str = PARAM) -> Iterator[Row]:
    """Read every row of a file, as `detect_format` found that it is to be read.

    Raises:
        InvalidInput: as `check_file`, for any row of the file.
    """
    with open_lines(path, detected.encoding, param) as lines:
        yield from _rows(lines, detected, param)


def detect_format(path: Path, filename: str, *, param: str = PARAM, whole: bool = False) -> DetectedFormat:
    """Find out encoding, kind, delimiter and columns; `whole` looks at every byte for the encoding."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    refuse_binary(head, filename, param)
    encoding = detect_encoding(path, head, whole=whole)
    with open_lines(path, encoding, param) as lines:
        number, line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (1, ""))
    if not line:
        raise InvalidInput(f"{filename} is empty.", param=param)
    if is_jsonl(line, filename):
        return _detect_jsonl(line, number, encoding, param)
    return _detect_csv(line, encoding, filename, param)


def _detect_csv(header: str, encoding: str, filename: str, param: str) -> DetectedFormat:
    found: list[str] = []
    for delimiter in DELIMITERS:
        names = _column_names(header, delimiter)
        columns, used = _columns(names)
        if used:
            for name in used:
                if names.count(name) > 1:
                    raise InvalidInput(
                        f"{filename} has {names.count(name)} columns called {name!r}: keep one of them.",
                        param=param,
                    )
            ignored = tuple(name for name in names if name not in used)
            return DetectedFormat("csv", columns, encoding, delimiter, ignored)
        if len(names) > len(found):
            found = names
    shown = ", ".join(repr(name[:80]) for name in found[:20])
    raise InvalidInput(
        f"{filename} has the columns {shown}, and none of the sets that can be trained on: {ACCEPTED}. "
        "Name them in the first line.",
        param=param,
    )


def _column_names(header: str, delimiter: str) -> list[str]:
    try:
        fields = next(csv.reader([header], delimiter=delimiter))
    except (csv.Error, StopIteration):
        return []
    return [field.strip().lower() for field in fields]


def _columns(names: list[str]) -> tuple[str, tuple[str, ...]]:
    """What a table holds, as `DetectedFormat.columns` calls it, and which columns are of that; or nothing."""
    pair, fitting = pair_keys(names), _fitting(names)
    if pair is not None:
        return pair, tuple(pair.split(","))
    if fitting is not None:
        return fitting.name, fitting.names
    return (MESSAGES, (MESSAGES,)) if MESSAGES in names else ("", ())


def _fitting(names: list[str]) -> ColumnSet | None:
    return next((s for s in COLUMN_SETS if s.question in names and s.answer in names), None)


def _rows(lines: Iterator[str], detected: DetectedFormat, param: str) -> Iterator[Row]:
    if detected.kind == "csv":
        return _csv_rows(lines, detected, param)
    return _jsonl_rows(lines, detected, param)


def _csv_rows(lines: Iterator[str], detected: DetectedFormat, param: str) -> Iterator[Row]:
    rows = csv_rows(lines, detected.delimiter, param)
    names = [field.strip().lower() for _, header in islice(rows, 1) for field in header]
    for line, fields in rows:
        yield _row(dict(zip(names, fields, strict=True)), line, detected, param)


def _row(record: dict[str, Any], line: int, detected: DetectedFormat, param: str) -> Row:
    if detected.holds_pairs:
        return Row(line, *read_pair(record, line, param))
    if detected.kind == "csv" and detected.columns == MESSAGES:
        return Row(line, _from_cell(record[MESSAGES], line, param))
    if detected.kind == "jsonl" and MESSAGES in record:
        return Row(line, _conversation(record[MESSAGES], line, param))
    return Row(line, _from_columns(record, line, param))


def _from_columns(record: dict[str, Any], line: int, param: str) -> Chat:
    columns = _fitting(list(record))
    if columns is None:
        raise InvalidInput(f"Line {line} has neither `messages` nor one of: {ACCEPTED}.", param=param)
    messages: Chat = []
    system = record.get(columns.system) if columns.system else None
    if system is not None and not is_text(system):
        raise InvalidInput(f"Line {line}: {columns.system} is not a text.", param=param)
    if system and system.strip():
        messages.append({"role": "system", "content": system.strip()})
    for role, name in (("user", columns.question), ("assistant", columns.answer)):
        value = record[name]
        if not is_text(value) or not value.strip():
            raise InvalidInput(f"Line {line}: {name} is empty or no text.", param=param)
        messages.append({"role": role, "content": value.strip()})
    return messages


def _jsonl_rows(lines: Iterator[str], detected: DetectedFormat, param: str) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(load_json(line, number, param), number, detected, param)


def _detect_jsonl(line: str, number: int, encoding: str, param: str) -> DetectedFormat:
    """The format that the first line shows, which is not yet checked in full."""
    record = load_json(line, number, param)
    pair = pair_keys(record)
    if pair is not None:
        return DetectedFormat("jsonl", pair, encoding, ignored_columns=tuple(unused(record, pair)))
    if MESSAGES in record:
        ignored = tuple(key for key in record if key != MESSAGES)
        return DetectedFormat("jsonl", MESSAGES, encoding, ignored_columns=ignored)
    columns = _fitting(list(record))
    if columns is None:
        shown = ", ".join(repr(key[:80]) for key in list(record)[:20])
        raise InvalidInput(
            f"Line {number} has the keys {shown}: a row needs `messages`, one of {ACCEPTED}, or a pair: "
            f"{' | '.join(PAIRS)}.",
            param=param,
        )
    ignored = tuple(key for key in record if key not in columns.names)
    return DetectedFormat("jsonl", columns.name, encoding, ignored_columns=ignored)


def _from_cell(cell: str, number: int, param: str) -> Chat:
    """A CSV's `messages`: a conversation as JSON in one field."""
    try:
        messages = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"Line {number}: messages is no JSON: {error}. Within a field each quote is written twice.",
            param=param,
        ) from None
    return _conversation(messages, number, param)


def _conversation(messages: Any, number: int, param: str) -> Chat:
    if not isinstance(messages, list) or not messages:
        raise InvalidInput(f"Line {number}: messages is not a list with turns.", param=param)
    chat = [
        read_message(message, f"Line {number}, message {i}", param)
        for i, message in enumerate(messages, start=1)
    ]
    if chat[0]["role"] == "system" and not chat[0]["content"].strip():
        chat = chat[1:]
    if not chat or chat[-1]["role"] != "assistant":
        raise InvalidInput(f"Line {number}: the last message must be the assistant's.", param=param)
    if all(message.get(WEIGHT) == UNWEIGHTED for message in chat if message["role"] == "assistant"):
        raise InvalidInput(
            f"Line {number}: every answer has weight 0, so that there is nothing to learn from it. Give one "
            "of them weight 1, or leave the line out.",
            param=param,
        )
    if any(message["role"] == "system" for message in chat[1:]):
        raise InvalidInput(f"Line {number}: a system message can only come first.", param=param)
    return chat
