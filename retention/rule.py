"""What a rule is, and what it works on."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.orm import Session

from db.ids import new_id
from db.settings import Settings
from db.storage import trash_folder

DAY_SECONDS = 24 * 3600.0
# Held in each transaction that removes something, so that one process keeps house at a time.
HOUSEKEEPING_LOCK = 4_155_302


@dataclass(frozen=True)
class House:
    """An installation: its settings and its storage root.

    Args:
        leavings_seconds: how old a path without a row has to be, since its row may still be on the way.
    """

    settings: Settings
    leavings_seconds: float = DAY_SECONDS

    @property
    def root(self) -> Path:
        return self.settings.storage_root

    def discard(self, path: Path) -> None:
        """Put a file or a folder out of the way at once, however large it is; the trash is emptied later."""
        trash = trash_folder(self.root)
        trash.mkdir(parents=True, exist_ok=True)
        path.rename(trash / new_id("trash"))


@dataclass(frozen=True)
class Expired:
    """Something that may go.

    Args:
        kind: what it is, in a word or two.
        id: which it is.
        why: a part of a sentence, for a person.
        bytes: what the disk gains at least: a file that is linked elsewhere too counts for nothing.
        rows: how many rows go with it.
    """

    kind: str
    id: str
    why: str
    bytes: int = 0
    rows: int = 0


@dataclass(frozen=True)
class Batch:
    """Some of what may go.

    Args:
        cursor: where the next batch begins. Of a rule that walks through history it stays where it is when
            all has been seen; of one that looks at what is there now it is None then.
        more: whether there is more to look at now.
    """

    items: list[Expired] = field(default_factory=list)
    cursor: Any = None
    more: bool = False


class Removal(StrEnum):
    """What came of an attempt to remove something."""

    DONE = "done"
    MORE = "more"  # a part of it, as much as one transaction should hold
    KEPT = "kept"  # it may not go any more, or somebody works on it


class Rule(Protocol):
    kind: str

    def find(self, session: Session, house: House, cursor: Any, limit: int) -> Batch:
        """Look at up to `limit` candidates after `cursor`. Nothing is changed."""

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        """Remove `item`, in the caller's transaction, if it still may go."""


def path_id(house: House, path: Path) -> str:
    """A path as the id of what may go: relative to the storage root, if it lies there."""
    return str(path.relative_to(house.root)) if path.is_relative_to(house.root) else str(path)


def freed_bytes(path: Path) -> int:
    """What the disk gains when `path` goes: the sizes of files that have no other link."""
    paths = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for each in paths:
        try:
            status = each.lstat()
        except FileNotFoundError:
            continue
        if each.is_file() and status.st_nlink == 1:
            total += status.st_size
    return total
