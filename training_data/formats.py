"""Files of training data: which shape their rows have, and the rows.

Everything streams: `check_file` looks at a file's beginning and is what a submit may cost, `RowReader`
reads all of it. Each error names the line, or the row where rows are no lines.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.params.data import DataParams
from training_data.fields import Fields
from training_data.rows import Row
from training_data.shapes import BY_NAME, LEARNS_FROM, SHAPES, WHAT, Shape, find_shape, method_for
from training_data.tables import Record, Table, detect_table, read_table

PARAM = "training_file"
AUTO = "auto"
CHECKED_ROWS = 200  # what a submit looks at, or
CHECKED_CHARACTERS = 1024 * 1024
ACCEPTED = " | ".join(map(str, SHAPES))
NAMES_SHOWN = 20
MOST_UNUSED = 100
NEEDS_MORE = ("grpo",)  # methods that rows alone do not settle: it learns by rewards


@dataclass(frozen=True)
class Reading:
    """How a file is to be read, as far as its owner says so.

    Args:
        format: a shape's name, or "auto".
        columns: the names of its columns by the shape's keys, where they differ.
    """

    format: str = AUTO
    columns: Mapping[Any, str] = field(default_factory=dict)


def validation_reading(params: DataParams) -> Reading:
    """How a job's validation file is to be read: as its training file, but for what is said of it alone."""
    return Reading(
        params.format if params.validation_format is None else params.validation_format,
        params.columns if params.validation_columns is None else params.validation_columns,
    )


@dataclass(frozen=True)
class DetectedFormat:
    """How a file is to be read.

    Args:
        names: the file's columns by the shape's keys.
        ignored_columns: of the header, or of the first JSON object, what no row is made of.
    """

    filename: str
    table: Table
    shape: Shape
    names: Mapping[str, str]
    ignored_columns: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.table.kind

    @property
    def encoding(self) -> str:
        return self.table.encoding

    @property
    def columns(self) -> str:
        """The columns that are used, as the file calls them."""
        required = [self.names[key] for key in self.shape.required]
        return ",".join(required + [name for name in self.names.values() if name not in required])


def check_file(
    path: Path, filename: str, *, method: str | None, reading: Reading = Reading(), param: str = PARAM
) -> None:
    """Check a file's header and first rows, in flat time and memory however large it is.

    Args:
        method: None: whatever the rows can be learnt by.
    Raises:
        InvalidInput: it is empty or no text, no columns fit, it is not what the method learns from, or one
            of the first rows is wrong.
    """
    table = _table(path, filename, param, reading, whole=False)
    if table.columns is None:
        return  # Parquet: the worker opens it
    detected = _detected(table, filename, reading, param)
    if method is not None:
        check_method(detected, method, filename, param=param)
    characters = 0
    for checked, row in enumerate(RowReader(detected, reading, param=param), start=1):
        characters += sum(len(message["content"]) for message in row.messages) + len(row.text or "")
        if checked >= CHECKED_ROWS or characters >= CHECKED_CHARACTERS:
            break


def find_method(path: Path, filename: str, *, reading: Reading, param: str = PARAM) -> str | None:
    """The method for rows that only some methods learn from; None where the file tells nothing of that.

    Raises:
        InvalidInput: as `check_file`.
    """
    table = _table(path, filename, param, reading, whole=False)
    if table.columns is None:
        return None  # Parquet
    method = method_for(_detected(table, filename, reading, param).shape)
    return None if method in NEEDS_MORE else method


def check_method(detected: DetectedFormat, method: str, filename: str, *, param: str = PARAM) -> None:
    """See that a file holds what a method learns from.

    Raises:
        InvalidInput: it does not.
    """
    shape, learns = detected.shape, LEARNS_FROM[method]
    if shape.teaches in learns:
        return
    others = [f'"{other}"' for other, taught in LEARNS_FROM.items() if shape.teaches in taught]
    wanted = " | ".join(str(each) for each in SHAPES if each.teaches in learns)
    raise InvalidInput(
        f"{filename} has {detected.columns}: {WHAT[shape.teaches]}. The method {method} learns from "
        f"{' or '.join(WHAT[taught] for taught in learns)}: give each row {wanted}, name the format that is "
        f"meant, or train by the method {' or '.join(others)}.",
        param=param,
    )


def detect_format(
    path: Path, filename: str, *, reading: Reading = Reading(), param: str = PARAM
) -> DetectedFormat:
    """Find out encoding, kind, delimiter and shape, by every byte of the file where that is needed.

    Raises:
        InvalidInput: it is no file of rows, or its columns are none of the shapes'.
    """
    return _detected(_table(path, filename, param, reading, whole=True), filename, reading, param)


class RowReader:
    """Every row of a file, as `detect_format` found that it is to be read.

    Args:
        keep_fields: also the columns that no row is made of.
        refused: is given the line of a row that is wrong, and why; None: the first one ends the reading.
    Raises:
        InvalidInput: as `check_file`, for any row of the file.
    """

    def __init__(
        self,
        detected: DetectedFormat,
        reading: Reading = Reading(),
        *,
        param: str = PARAM,
        keep_fields: bool = False,
        refused: Callable[[int, InvalidInput], None] | None = None,
    ) -> None:
        self.detected = detected
        self.unused: set[str] = set(detected.ignored_columns)
        self._reading = reading
        self._param = param
        self._keep_fields = keep_fields
        self._refused = refused
        self._by_columns: dict[tuple[str, ...], tuple[Shape, Mapping[str, str]]] = {}

    def __iter__(self) -> Iterator[Row]:
        wanted = None if self._keep_fields else list(self.detected.names.values())
        record = None
        for record in read_table(self.detected.table, param=self._param, columns=wanted):
            try:
                row = self._row(record)
            except InvalidInput as error:
                if self._refused is None:
                    raise
                self._refused(record.line, error)
            else:
                yield row
        if record is None:
            raise InvalidInput(
                f"{self.detected.filename} has no rows: there is nothing to learn from.", param=self._param
            )

    def _row(self, record: Record) -> Row:
        shape, names = self._shape_of(tuple(record.values), record.place)
        unused: set[str] = set()
        row = shape.read(Fields(record.values, names, record.place, self._param, unused))
        if unused and len(self.unused) < MOST_UNUSED:
            self.unused |= unused
        kept = {}
        if self._keep_fields:
            kept = {name: value for name, value in record.values.items() if name not in names.values()}
        return replace(row, line=record.line, fields=kept)

    def _shape_of(self, columns: tuple[str, ...], place: str) -> tuple[Shape, Mapping[str, str]]:
        """The shape of a row: rows of JSON may have others than the first, of the same use."""
        known = self._by_columns.get(columns)
        if known is not None:
            return known
        first = self.detected.shape
        present = _by_key(columns, self._reading)
        shape = first if all(key in present for key in first.required) else find_shape(present)
        if shape is None or shape.teaches != first.teaches:
            raise InvalidInput(
                f"{place} has {_shown(columns)}, and not {first} as the rows before.",
                param=self._param,
            )
        names = _names(shape, present, columns, place, self._param)
        if len(self.unused) < MOST_UNUSED:
            self.unused |= set(columns) - set(names.values())
        if len(self._by_columns) < MOST_UNUSED:
            self._by_columns[columns] = shape, names
        return shape, names


def _table(path: Path, filename: str, param: str, reading: Reading, *, whole: bool) -> Table:
    def is_header(names: Sequence[str]) -> bool:
        present = _by_key(names, reading)
        if reading.format != AUTO:
            return all(key in present for key in BY_NAME[reading.format].required)
        return find_shape(present) is not None

    return detect_table(path, filename, param=param, whole=whole, is_header=is_header)


def _detected(table: Table, filename: str, reading: Reading, param: str) -> DetectedFormat:
    columns = table.columns or ()
    present = _by_key(columns, reading)
    for key, name in reading.columns.items():
        if name not in columns:
            raise InvalidInput(
                f"columns: {filename} has no column {name!r} for {key}. It has {_shown(columns)}.",
                param=param,
                code="unknown_column",
            )
    shape = find_shape(present) if reading.format == AUTO else BY_NAME[reading.format]
    if shape is None:
        raise InvalidInput(
            f"{filename} has {_shown(columns)}, and no set that can be trained on: {ACCEPTED}. "
            "Name them so, or say by `columns` which of yours is which.",
            param=param,
        )
    missing = [key for key in shape.required if key not in present]
    if missing:
        raise InvalidInput(
            f"{filename} has {_shown(columns)}, and the format {shape.name} needs {shape}: say by `columns` "
            f"which of yours is {' and '.join(missing)}.",
            param=param,
        )
    names = _names(shape, present, columns, filename, param)
    ignored = tuple(name for name in columns if name not in names.values())
    return DetectedFormat(filename, table, shape, names, ignored)


def _by_key(columns: Sequence[str], reading: Reading) -> dict[str, str]:
    """The columns by what a shape may call them: as they were mapped, or by their own names."""
    mapped = set(reading.columns.values())
    present: dict[str, str] = {}
    for name in columns:
        if name not in mapped:
            present.setdefault(name.strip().lower(), name)
    return present | {key: name for key, name in reading.columns.items() if name in columns}


def _names(
    shape: Shape, present: Mapping[str, str], columns: Sequence[str], place: str, param: str
) -> dict[str, str]:
    """The columns of a shape by its keys; one of them that is there twice would be a guess."""
    names = {key: present[key] for key in shape.all_keys if key in present}
    written = [name.strip().lower() for name in columns]
    for key, name in names.items():
        if written.count(name.strip().lower()) > 1:
            raise InvalidInput(
                f"{place} has {written.count(key)} columns called {key!r}: keep one of them.", param=param
            )
    return names


def _shown(columns: Sequence[str]) -> str:
    if not columns:
        return "no columns"
    shown = ", ".join(repr(name[:80]) for name in columns[:NAMES_SHOWN])
    more = f" and {len(columns) - NAMES_SHOWN} more" if len(columns) > NAMES_SHOWN else ""
    return f"the columns {shown}{more}"
