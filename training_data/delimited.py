"""CSV and its kin: rows of fields, each row of bounded length, each error with its line."""

import csv
from collections.abc import Iterator

from db.errors import InvalidInput
from training_data.text_files import MAX_LINE_CHARACTERS

DELIMITERS = (",", ";", "\t", "|")


def header_names(header: str, delimiter: str) -> list[str]:
    """The columns that a header names; nothing where it is none."""
    try:
        return [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    except (csv.Error, StopIteration):
        return []


def csv_rows(lines: Iterator[str], delimiter: str, param: str) -> Iterator[tuple[int, list[str]]]:
    """The header of a CSV, then its rows: the line that each begins in, and as many fields as the header has.

    Raises:
        InvalidInput: a line is no CSV, or has more fields or fewer; the message names it.
    """
    # A process-wide setting of the csv module, and one that only ever needs to be this.
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    bounded = _OneRowAtATime(lines, param)
    reader = csv.reader(bounded, delimiter=delimiter, strict=True)
    width: int | None = None
    while True:
        bounded.begin(reader.line_num + 1)
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise _no_csv(bounded.first_line, error, param) from None
        if fields is None:
            return
        if not any(field.strip() for field in fields):
            continue
        if width is None:
            width = len(fields)
        elif len(fields) != width:
            raise _wrong_field_count(bounded.first_line, len(fields), width, delimiter, param)
        yield bounded.first_line, fields


class _OneRowAtATime:
    """Lines, until one row has taken too many: quotes that never close would take the whole file."""

    def __init__(self, lines: Iterator[str], param: str) -> None:
        self._lines = lines
        self._param = param
        self._taken = 0
        self.first_line = 1

    def begin(self, line: int) -> None:
        self.first_line = line
        self._taken = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._taken += len(line)
        if self._taken > MAX_LINE_CHARACTERS:
            raise InvalidInput(
                f"The row that begins in line {self.first_line} is longer than {MAX_LINE_CHARACTERS} "
                "characters: a quote is opened there and never closed. A quote inside a field is written "
                "twice.",
                param=self._param,
            )
        return line


def _no_csv(line: int, error: csv.Error, param: str) -> InvalidInput:
    if "unexpected end of data" in str(error):
        said = f"Line {line} is no CSV: a quote is opened there and never closed."
    else:
        said = f"Line {line} is no CSV: {error}."
    return InvalidInput(f"{said} A quote inside a field is written twice.", param=param)


def _wrong_field_count(line: int, fields: int, names: int, delimiter: str, param: str) -> InvalidInput:
    """The error for a line of a CSV that has more or fewer fields than the header names."""
    fix = (
        f"put fields that hold {delimiter!r} in double quotes"
        if fields > names
        else f"give it one for each name, with {delimiter!r} between them; a field may be empty"
    )
    held = "1 field" if fields == 1 else f"{fields} fields"
    return InvalidInput(f"Line {line} has {held}, the header {names}: {fix}.", param=param)
