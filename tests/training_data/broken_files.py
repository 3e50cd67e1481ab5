"""More than two hundred files that nobody should train on, each with what its owner has to be told.

Most have two good rows before the bad one, so that a reader which looks at the beginning alone lets them by.
"""

from dataclasses import dataclass

from tests.training_data.broken_rows import BROKEN_ROWS
from tests.training_data.broken_texts import BROKEN_TEXTS


@dataclass(frozen=True)
class Broken:
    """A file, and a pattern of the error: where it is and what to do."""

    name: str
    filename: str
    content: bytes
    says: str


def broken_files() -> list[Broken]:
    return [
        Broken(f"{group.__name__}: {name}", filename, content, says)
        for group in (*BROKEN_TEXTS, *BROKEN_ROWS)
        for name, filename, content, says in group()
    ]
