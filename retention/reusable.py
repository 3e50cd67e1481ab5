"""What is kept to be taken again, and can be made again: it goes when nobody takes it for long, and the
longest unused when all is too much.

Files of bases lie in the cache; rows that were read for trainings in the storage root, and go with the files
that they were made of, too.
"""

import json
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import File
from db.source_files import ENTRY_FILE
from db.storage import prepared_projects
from retention.rule import DAY_SECONDS, Batch, Expired, House, Removal, Rule, freed_bytes, path_id
from serving.served_adapters import base_files_folder


@dataclass(frozen=True)
class Entry:
    path: Path
    bytes: int
    unused_seconds: float


class Reusable:
    """A rule about entries of which the disk gains something. `taken` is what is done with one."""

    kind = ""
    taken = ""

    def find(self, session: Session, house: House, cursor: None, limit: int) -> Batch:
        """Those first that were not taken for longest."""
        items = list(self._expired(session, house))
        return Batch(items[:limit], more=len(items) > limit)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        if item.id not in {found.id for found in self._expired(session, house)}:
            return Removal.KEPT
        self.take_away(house, house.root / item.id)  # an absolute one stays as it is
        return Removal.DONE

    def paths(self, house: House) -> Iterator[Path]:
        raise TypeError("a rule says where it looks")

    def bounds(self, house: House) -> tuple[float | None, int]:
        """The days that one is kept unused (None: for ever), and the bytes of all."""
        raise TypeError("a rule says how long and how much is kept")

    def why(self, session: Session, house: House, entry: Entry, held: int) -> str | None:
        """Why an entry may go; None: it stays.

        Args:
            held: bytes of all that stay, itself included.
        """
        days, most = self.bounds(house)
        if days is not None and entry.unused_seconds > days * DAY_SECONDS:
            return f"not {self.taken} for {days:g} days"
        return f"all of them are more than {most:,} bytes" if held > most else None

    def take_away(self, house: House, path: Path) -> None:
        house.discard(path)

    def _expired(self, session: Session, house: House) -> Iterator[Expired]:
        entries = sorted(self._entries(house), key=lambda entry: -entry.unused_seconds)
        held = sum(entry.bytes for entry in entries)
        for entry in entries:
            why = self.why(session, house, entry, held)
            if why is not None:
                held -= entry.bytes
                yield Expired(self.kind, path_id(house, entry.path), why, entry.bytes)

    def _entries(self, house: House) -> Iterator[Entry]:
        for path in self.paths(house):
            if not path.name.startswith("."):  # one that is being written, or removed
                with suppress(FileNotFoundError):  # one that has just gone
                    yield Entry(path, freed_bytes(path), time.time() - path.stat().st_mtime)


class BaseFiles(Reusable):
    """Of one base: its quantised files, and what was measured of them."""

    kind = "base's files"
    taken = "asked for"

    def paths(self, house: House) -> Iterator[Path]:
        folder = base_files_folder(house.settings.cache_dir)
        yield from folder.iterdir() if folder.is_dir() else ()

    def bounds(self, house: House) -> tuple[float | None, int]:
        return house.settings.keep_base_files_days, house.settings.base_files_max_bytes

    def why(self, session: Session, house: House, entry: Entry, held: int) -> str | None:
        # Of files that are all linked elsewhere too, as served ones are, nothing is gained.
        if entry.bytes == 0 or entry.unused_seconds <= house.leavings_seconds:
            return None  # a step may be reading it
        return super().why(session, house, entry, held)

    def take_away(self, house: House, path: Path) -> None:
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # the trash may be on another disk
        path.rename(beside)
        shutil.rmtree(beside, ignore_errors=True)


class PreparedRows(Reusable):
    kind = "prepared rows"
    taken = "taken"

    def paths(self, house: House) -> Iterator[Path]:
        for project in prepared_projects(house.root):
            yield from project.iterdir()

    def bounds(self, house: House) -> tuple[float | None, int]:
        return house.settings.keep_prepared_days, house.settings.prepared_max_bytes

    def why(self, session: Session, house: House, entry: Entry, held: int) -> str | None:
        found = super().why(session, house, entry, held)
        if found is None and not _has_its_files(session, entry.path):
            return "a file that they were made of is gone"
        return found


def _has_its_files(session: Session, entry: Path) -> bool:
    """Whether the project still has files of the content that the rows were made of."""
    try:
        made_of = set(json.loads((entry / ENTRY_FILE).read_text())["result"]["files"])
    except (OSError, ValueError, KeyError):
        return False
    there = select(File.sha256).where(File.project_id == entry.parent.name, File.sha256.in_(made_of))
    return made_of == set(session.scalars(there))


REUSABLE: tuple[Rule, ...] = (PreparedRows(), BaseFiles())
