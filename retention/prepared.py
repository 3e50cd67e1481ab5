"""Rows that were read for trainings and are kept for the next one: they go when nobody takes them, when they
are too many, and when a file that they were made of has gone.
"""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import File
from db.source_files import ENTRY_FILE
from db.storage import prepared_projects
from retention.rule import DAY_SECONDS, Batch, Expired, House, Removal, Rule, freed_bytes


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    unused_seconds: float

    @property
    def project_id(self) -> str:
        return self.path.parent.name


class PreparedRows:
    kind = "prepared rows"

    def find(self, session: Session, house: House, cursor: None, limit: int) -> Batch:
        """Those that were not taken for longest first."""
        items = list(self._expired(session, house))
        return Batch(items[:limit], more=len(items) > limit)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        if item.id not in {found.id for found in self._expired(session, house)}:
            return Removal.KEPT
        house.discard(house.root / item.id)
        return Removal.DONE

    def _expired(self, session: Session, house: House) -> Iterator[Expired]:
        entries = sorted(_entries(house.root), key=lambda entry: -entry.unused_seconds)
        held = sum(entry.bytes for entry in entries)
        for entry in entries:
            why = self._why(session, house, entry, held)
            if why is not None:
                held -= entry.bytes
                yield Expired(self.kind, str(entry.path.relative_to(house.root)), why, entry.bytes)

    def _why(self, session: Session, house: House, entry: _Entry, held: int) -> str | None:
        days, most = house.settings.keep_prepared_days, house.settings.prepared_max_bytes
        if days is not None and entry.unused_seconds > days * DAY_SECONDS:
            return f"not taken for {days:g} days"
        if held > most:
            return f"all of them are more than {most:,} bytes"
        if not _has_its_files(session, entry):
            return "a file that they were made of is gone"
        return None


def _entries(root: Path) -> Iterator[_Entry]:
    for project in prepared_projects(root):
        for path in project.iterdir():
            if not path.name.startswith("."):  # one that is being written
                with suppress(FileNotFoundError):  # one that has just gone
                    yield _Entry(path, freed_bytes(path), time.time() - path.stat().st_mtime)


def _has_its_files(session: Session, entry: _Entry) -> bool:
    """Whether the project still has files of the content that the rows were made of."""
    try:
        made_of = set(json.loads((entry.path / ENTRY_FILE).read_text())["result"]["files"])
    except (OSError, ValueError, KeyError):
        return False
    there = select(File.sha256).where(File.project_id == entry.project_id, File.sha256.in_(made_of))
    return made_of == set(session.scalars(there))


PREPARED: tuple[Rule, ...] = (PreparedRows(),)
