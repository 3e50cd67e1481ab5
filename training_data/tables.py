"""Files of rows with named columns, of whatever they are about: CSV, TSV, JSONL, JSON and Parquet.

Everything streams, and no row is longer than `MAX_LINE_CHARACTERS`. What of it is a conversation is the
business of `shapes`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from db.errors import InvalidInput
from training_data.delimited import DELIMITERS, csv_rows, header_names
from training_data.json_rows import json_rows, jsonl_rows, load_json
from training_data.parquet import ends_like_parquet, looks_like_parquet, parquet_columns, parquet_rows
from training_data.text_files import (
    FALLBACK_ENCODING,
    HEAD_BYTES,
    detect_encoding,
    open_lines,
    read_blocks,
    refuse_binary,
)

TableKind = Literal["csv", "jsonl", "json", "parquet", "text"]
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TEXT_ENDINGS = (".csv", ".tsv", ".tab")
PLAIN_ENDINGS = (".txt", ".md", ".markdown")
PLAIN_COLUMNS = ("text", "continues")
PASSAGE_CHARACTERS = 2000  # of plain text, at the least: what is held out is whole passages


@dataclass(frozen=True)
class Table:
    """How a file is to be read.

    Args:
        columns: of the header; of JSON the keys of the first row; None of a Parquet file that only its
            reader can open.
    """

    path: Path
    kind: TableKind
    columns: tuple[str, ...] | None
    encoding: str = ""
    delimiter: str = ""

    @property
    def is_guessed(self) -> bool:
        """Whether it is no UTF-8, and was read as what spreadsheets on Windows write."""
        return self.encoding == FALLBACK_ENCODING

    @property
    def counted(self) -> str:
        """What its records are counted by."""
        return "line" if self.kind in ("csv", "jsonl", "text") else "row"


@dataclass(frozen=True)
class Record:
    """A row: its line, or its number where rows are no lines, counted from 1, and its values by column.

    Args:
        place: as an error names it.
    """

    line: int
    values: dict[str, Any]
    place: str = ""


def detect_table(
    path: Path,
    filename: str,
    *,
    param: str,
    whole: bool = False,
    is_header: Callable[[Sequence[str]], bool] | None = None,
) -> Table:
    """Find out kind, encoding, delimiter and columns.

    Args:
        whole: look at every byte for the encoding, and open a Parquet file.
        is_header: whether a CSV's columns are what is looked for; without it each needs a name of its own.
    Raises:
        InvalidInput: it is empty, or none of these.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if looks_like_parquet(head):
        if not ends_like_parquet(path):
            raise InvalidInput(
                f"{filename} is a Parquet file that is cut off: its end is missing. Upload it again.",
                param=param,
            )
        return Table(path, "parquet", parquet_columns(path, filename, param) if whole else None)
    refuse_binary(head, filename, param)
    if filename.lower().endswith(".parquet"):
        raise InvalidInput(f"{filename} is no Parquet file: it does not begin like one.", param=param)
    encoding = detect_encoding(path, head, filename, whole=whole, param=param)
    blocks = read_blocks(path, encoding, param)
    start = next((block.lstrip() for block in blocks if block.strip()), "")
    if not start:
        raise InvalidInput(f"{filename} is empty.", param=param)
    if _is_document(start, filename):
        first = next(json_rows(read_blocks(path, encoding, param), param), None)
        if first is None:
            raise InvalidInput(f"{filename} has no rows: its array is empty.", param=param)
        return Table(path, "json", tuple(first[1]), encoding)
    with open_lines(path, encoding, param) as lines:
        number, line = next((n, line) for n, line in enumerate(lines, 1) if line.strip())
    if is_header is not None and _is_plain(line, filename, is_header):
        return Table(path, "text", PLAIN_COLUMNS, encoding)
    if _is_json(line, filename):
        return Table(path, "jsonl", tuple(load_json(line, number, param)), encoding)
    return _detect_csv(path, line, encoding, filename=filename, param=param, is_header=is_header)


def read_table(table: Table, *, param: str, columns: Sequence[str] | None = None) -> Iterator[Record]:
    """Read every row.

    Args:
        columns: what is wanted of a Parquet file; None: all of them.
    Raises:
        InvalidInput: a line is none; the message names it.
    """
    if table.kind == "parquet":
        for row, values in enumerate(parquet_rows(table.path, param, columns), start=1):
            yield Record(row, values, f"Row {row}")
        return
    if table.kind == "json":
        rows = json_rows(read_blocks(table.path, table.encoding, param), param)
        for row, (line, values) in enumerate(rows, start=1):
            yield Record(row, values, f"Row {row} (line {line})")
        return
    with open_lines(table.path, table.encoding, param) as lines:
        if table.kind == "text":
            read = _passages(lines)
        else:
            read = _csv_records(lines, table, param) if table.kind == "csv" else jsonl_rows(lines, param)
        for line, values in read:
            yield Record(line, values, f"Line {line}")


def _is_json(line: str, filename: str) -> bool:
    if filename.lower().endswith(JSON_ENDINGS):
        return True
    return not filename.lower().endswith(TEXT_ENDINGS) and line.lstrip().startswith(("{", "["))


def _is_plain(line: str, filename: str, is_header: Callable[[Sequence[str]], bool]) -> bool:
    """Whether it is text by its name, and no rows that only bear such a name."""
    if not filename.lower().endswith(PLAIN_ENDINGS) or line.lstrip().startswith(("{", "[")):
        return False
    return not any(is_header(header_names(line, delimiter)) for delimiter in DELIMITERS)


def _passages(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """One document in passages that end with a blank line, or the file; together they are the whole of it."""
    begins, held, size = 1, list[str](), 0
    for number, line in enumerate(lines, start=1):
        if size >= PASSAGE_CHARACTERS and not held[-1].strip() and line.strip():
            yield begins, {"text": "".join(held), "continues": True}
            begins, held, size = number, [], 0
        held.append(line)
        size += len(line)
    if "".join(held).strip():
        yield begins, {"text": "".join(held), "continues": False}


def _is_document(start: str, filename: str) -> bool:
    """Whether it is an array, or objects that are written over several lines, and not an object a line."""
    if not _is_json(start, filename):
        return False
    opens = start.startswith("[") or start.partition("\n")[0].strip() == "{"
    return opens or filename.lower().endswith(".json")


def _detect_csv(
    path: Path,
    header: str,
    encoding: str,
    *,
    filename: str,
    param: str,
    is_header: Callable[[Sequence[str]], bool] | None,
) -> Table:
    by_delimiter = {delimiter: header_names(header, delimiter) for delimiter in DELIMITERS}
    fitting = [each for each, names in by_delimiter.items() if is_header is not None and is_header(names)]
    delimiter = fitting[0] if fitting else max(DELIMITERS, key=lambda each: len(by_delimiter[each]))
    found = by_delimiter[delimiter]
    if is_header is None and (not all(found) or len(set(found)) != len(found)):
        shown = ", ".join(repr(name[:80]) for name in found[:20])
        raise InvalidInput(
            f"{filename} has the columns {shown}: each needs a name of its own, in the first line.",
            param=param,
        )
    return Table(path, "csv", tuple(found), encoding, delimiter)


def _csv_records(lines: Iterator[str], table: Table, param: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv_rows(lines, table.delimiter, param)
    names = [field.strip() for _, header in islice(rows, 1) for field in header]
    for line, fields in rows:
        yield line, dict(zip(names, fields, strict=True))
