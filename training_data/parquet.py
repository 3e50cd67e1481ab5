"""Parquet files, a few rows at a time. pyarrow is imported by whoever opens one, and never by the API."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from db.errors import InvalidInput

MARK = b"PAR1"
ROWS_AT_ONCE = 1000
BYTES_AT_ONCE = 16 * 1024**2


def looks_like_parquet(head: bytes) -> bool:
    return head.startswith(MARK)


def ends_like_parquet(path: Path) -> bool:
    """Whether the footer is there, which says where everything is: it is the last that is written."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - len(MARK)))
        return size >= 12 and file.read() == MARK


def parquet_columns(path: Path, filename: str, param: str) -> tuple[str, ...]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.ParquetFile(path).schema_arrow.names
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"{filename} is no whole Parquet file: {error}.", param=param) from None
    return tuple(names)


def parquet_rows(path: Path, param: str, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Each row's values by column.

    Args:
        columns: those that are decoded; None: all of them.
    Raises:
        InvalidInput: the file is damaged; the message names the row before.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # Pages are read as they are needed, and not a whole row group at once.
        with pyarrow.parquet.ParquetFile(path, buffer_size=1024**2, pre_buffer=False) as file:
            batches = file.iter_batches(
                batch_size=_rows_at_once(file.metadata),
                columns=list(columns) if columns is not None else None,
                use_threads=False,
            )
            for batch in batches:
                for values in batch.to_pylist():
                    number += 1
                    yield values
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        message = f"The Parquet file cannot be read after row {number}: {error}."
        raise InvalidInput(message, param=param) from None


def _rows_at_once(metadata: Any) -> int:
    """Fewer of them where rows are large."""
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    mean = max(1, size // max(1, metadata.num_rows))
    return int(min(ROWS_AT_ONCE, max(1, BYTES_AT_ONCE // mean)))
