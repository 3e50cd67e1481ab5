"""Files of rows with named columns, of whatever they are about: CSV, JSONL and Parquet.

Everything streams. What a conversation may look like is the business of `formats`.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from db.errors import InvalidInput
from training_data.text_files import (
    DELIMITERS,
    FALLBACK_ENCODING,
    HEAD_BYTES,
    csv_rows,
    detect_encoding,
    is_jsonl,
    load_json,
    open_lines,
    refuse_binary,
)

PARQUET_MARK = b"PAR1"
PARQUET_ROWS = 1000  # that are decoded at once


@dataclass(frozen=True)
class Table:
    """How a file is to be read.

    Args:
        columns: of the header; of JSONL the keys of the first row; None of a Parquet file that only its
            reader can open.
    """

    path: Path
    kind: Literal["csv", "jsonl", "parquet"]
    columns: tuple[str, ...] | None
    encoding: str = ""
    delimiter: str = ""

    @property
    def is_guessed(self) -> bool:
        """Whether it is no UTF-8, and was read as what spreadsheets on Windows write."""
        return self.encoding == FALLBACK_ENCODING


@dataclass(frozen=True)
class Record:
    """A row: where it is in its file, counted from 1, and its values by column."""

    line: int
    values: dict[str, Any]


def detect_table(path: Path, filename: str, *, param: str, whole: bool = False) -> Table:
    """Find out kind, encoding, delimiter and columns.

    Args:
        whole: look at every byte for the encoding, and open a Parquet file.
    Raises:
        InvalidInput: it is empty, or none of the three.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(PARQUET_MARK):
        return Table(path, "parquet", _parquet_columns(path, filename, param) if whole else None)
    refuse_binary(head, filename, param)
    encoding = detect_encoding(path, head, whole=whole)
    with open_lines(path, encoding, param) as lines:
        number, line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (1, ""))
    if not line:
        raise InvalidInput(f"{filename} is empty.", param=param)
    if is_jsonl(line, filename):
        return Table(path, "jsonl", tuple(load_json(line, number, param)), encoding)
    return _detect_csv(path, line, encoding, filename, param)


def read_table(table: Table, *, param: str) -> Iterator[Record]:
    """Read every row.

    Raises:
        InvalidInput: a line is none; the message names it.
    """
    if table.kind == "parquet":
        yield from _parquet_records(table, param)
        return
    with open_lines(table.path, table.encoding, param) as lines:
        if table.kind == "csv":
            yield from _csv_records(lines, table, param)
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Record(number, load_json(line, number, param))


def _detect_csv(path: Path, header: str, encoding: str, filename: str, param: str) -> Table:
    found = max((_names(header, delimiter) for delimiter in DELIMITERS), key=len)
    delimiter = next(each for each in DELIMITERS if _names(header, each) == found)
    if not all(found) or len(set(found)) != len(found):
        shown = ", ".join(repr(name[:80]) for name in found[:20])
        raise InvalidInput(
            f"{filename} has the columns {shown}: each needs a name of its own, in the first line.",
            param=param,
        )
    return Table(path, "csv", tuple(found), encoding, delimiter)


def _names(header: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    except (csv.Error, StopIteration):
        return []


def _csv_records(lines: Iterator[str], table: Table, param: str) -> Iterator[Record]:
    rows = csv_rows(lines, table.delimiter, param)
    names = [field.strip() for _, header in islice(rows, 1) for field in header]
    for line, fields in rows:
        yield Record(line, dict(zip(names, fields, strict=True)))


def _parquet_columns(path: Path, filename: str, param: str) -> tuple[str, ...]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.ParquetFile(path).schema_arrow.names
    except pyarrow.ArrowException as error:
        raise InvalidInput(f"{filename} is no whole Parquet file: {error}.", param=param) from None
    return tuple(names)


def _parquet_records(table: Table, param: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(table.path).iter_batches(batch_size=PARQUET_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Record(number, values)
    except (pyarrow.ArrowException, OSError) as error:
        message = f"The Parquet file cannot be read after row {number}: {error}."
        raise InvalidInput(message, param=param) from None
