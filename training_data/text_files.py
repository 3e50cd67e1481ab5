"""Text files of rows, of whatever encoding: read line by line, each of bounded length."""

import codecs
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from db.errors import InvalidInput

HEAD_BYTES = 1024 * 1024
# No row of text that a model can be trained on is longer; a file without line ends must not fill memory.
MAX_LINE_CHARACTERS = 8 * 1024 * 1024
DELIMITERS = (",", ";", "\t", "|")

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK_ENCODING = "cp1252"  # what spreadsheets on Windows write


def refuse_binary(head: bytes, filename: str, param: str) -> None:
    if not head.strip(b" \t\r\n\x00\xef\xbb\xbf\xff\xfe"):
        raise InvalidInput(f"{filename} is empty.", param=param)
    if head.startswith(b"PK\x03\x04"):
        raise InvalidInput(
            f"{filename} is a ZIP archive or a spreadsheet: export it as CSV first.", param=param
        )
    wide = any(head.startswith(bom) for bom, encoding in BOMS if encoding != "utf-8-sig")
    if b"\x00" in head and not wide:
        raise InvalidInput(f"{filename} is no text file: give a CSV or JSONL in UTF-8.", param=param)


def detect_encoding(path: Path, head: bytes, *, whole: bool) -> str:
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        if not whole:
            decoder.decode(head)  # not final: the head may end inside a character
            return "utf-8"
        with path.open("rb") as file:
            while block := file.read(HEAD_BYTES):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return FALLBACK_ENCODING
    return "utf-8"


@contextmanager
def open_lines(path: Path, encoding: str, param: str) -> Iterator[Iterator[str]]:
    """Open a text file as lines of bounded length, their ends as they are."""
    with path.open(encoding=encoding, newline="") as text:
        yield _bounded_lines(text, encoding, param)


def _bounded_lines(text: TextIO, encoding: str, param: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        try:
            line = text.readline(MAX_LINE_CHARACTERS)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"Line {number} or soon after is not {encoding.upper()}: {error.reason}. Save as UTF-8.",
                param=param,
            ) from None
        if not line:
            return
        if len(line) == MAX_LINE_CHARACTERS and not line.endswith(("\n", "\r")):
            raise InvalidInput(f"Line {number} is longer than {MAX_LINE_CHARACTERS} characters.", param=param)
        yield line


def csv_rows(lines: Iterator[str], delimiter: str, param: str) -> Iterator[tuple[int, list[str]]]:
    """The header of a CSV, then its rows: the line that each begins in, and as many fields as the header has.

    Raises:
        InvalidInput: a line is no CSV, or has more fields or fewer; the message names it.
    """
    # A process-wide setting of the csv module, and one that only ever needs to be this.
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    width: int | None = None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InvalidInput(
                f"Line {line} is no CSV: {error}. A quote inside a field is written twice.", param=param
            ) from None
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if width is None:
            width = len(fields)
        elif len(fields) != width:
            raise _wrong_field_count(line, len(fields), width, delimiter, param)
        yield line, fields


def load_json(line: str, number: int, param: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"Line {number} is no JSON: {error}. Each line holds one object.", param=param
        ) from None
    if not isinstance(record, dict):
        raise InvalidInput(f"Line {number} is no JSON object: each line holds one.", param=param)
    return record


def _wrong_field_count(line: int, fields: int, names: int, delimiter: str, param: str) -> InvalidInput:
    """The error for a line of a CSV that has more or fewer fields than the header names."""
    fix = (
        f"put fields that hold {delimiter!r} in double quotes"
        if fields > names
        else f"give it one for each name, with {delimiter!r} between them; a field may be empty"
    )
    held = "1 field" if fields == 1 else f"{fields} fields"
    return InvalidInput(f"Line {line} has {held}, the header {names}: {fix}.", param=param)


def is_jsonl(line: str, filename: str) -> bool:
    if filename.lower().endswith((".jsonl", ".ndjson", ".json")):
        return True
    if filename.lower().endswith((".csv", ".tsv")):
        return False
    return line.lstrip().startswith("{")
