"""Rows of a SQL source as a file that keeps what was read: a dataset, named by the hash of its content."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.sql_rows import SqlRows

HASH_LENGTH = 12


@dataclass
class Snapshot:
    """Args:
    path: JSON lines, each a row with all of its columns.
    folds: of each line its value in the fold column, as text; empty without one.
    """

    path: Path
    sha256: str
    rows: int
    folds: list[str] = field(default_factory=list)


def write_snapshot(
    read: SqlRows, folder: Path, *, fold_column: str | None, tell: Callable[[int], None]
) -> Snapshot:
    """Write all rows into `folder`.

    Args:
        tell: is given how many there are, now and then.
    Raises:
        InvalidInput: there is no such column, a row has no fold, or there are no rows.
    """
    if fold_column is not None and fold_column not in read.columns:
        raise InvalidInput(
            f"fold_column: there is no column {fold_column!r}. The rows have: {', '.join(read.columns)}.",
            param="fold_column",
            code="unknown_column",
        )
    unnamed = folder / "dataset.jsonl"
    folds: list[str] = []
    sha256, rows = hashlib.sha256(), 0
    with unnamed.open("wb") as out:
        for line in _lines(read.rows, fold_column, folds):
            rows += 1
            sha256.update(line)
            out.write(line)
            if rows % 2000 == 0:
                tell(rows)
    if rows == 0:
        raise InvalidInput("training_source has no rows.", param="training_source", code="no_rows")
    path = folder / f"dataset-{sha256.hexdigest()[:HASH_LENGTH]}.jsonl"
    unnamed.rename(path)
    return Snapshot(path, sha256.hexdigest(), rows, folds)


def _lines(rows: Iterable[dict[str, Any]], fold_column: str | None, folds: list[str]) -> Iterable[bytes]:
    for number, row in enumerate(rows, start=1):
        if fold_column is not None:
            if row[fold_column] is None:
                raise InvalidInput(
                    f"fold_column: row {number} has no {fold_column}.",
                    param="fold_column",
                    code="missing_value",
                )
            folds.append(str(row[fold_column]))
        yield json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
