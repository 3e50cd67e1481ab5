"""Files of bases in the cache, which are made again when they are needed: they go when no job has asked for
them for long, and the longest unused when all are too many.
"""

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from retention.rule import DAY_SECONDS, Batch, Expired, House, Removal, Rule, freed_bytes
from serving.served_adapters import base_files_folder


@dataclass(frozen=True)
class _Entry:
    path: Path  # of one base: its quantised files, and what was measured of them
    bytes: int
    unused_seconds: float


class BaseFiles:
    kind = "base's files"

    def find(self, session: Session, house: House, cursor: None, limit: int) -> Batch:
        """Those that were not asked for for longest first."""
        items = list(self._expired(house))
        return Batch(items[:limit], more=len(items) > limit)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        if item.id not in {found.id for found in self._expired(house)}:
            return Removal.KEPT
        path = Path(item.id)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # the trash may be on another disk
        path.rename(beside)
        shutil.rmtree(beside, ignore_errors=True)
        return Removal.DONE

    def _expired(self, house: House) -> Iterator[Expired]:
        entries = sorted(_entries(house), key=lambda entry: -entry.unused_seconds)
        held = sum(entry.bytes for entry in entries)
        for entry in entries:
            why = _why(house, entry, held)
            if why is not None:
                held -= entry.bytes
                yield Expired(self.kind, str(entry.path), why, entry.bytes)


def _why(house: House, entry: _Entry, held: int) -> str | None:
    days, most = house.settings.keep_base_files_days, house.settings.base_files_max_bytes
    if entry.unused_seconds <= house.leavings_seconds:
        return None  # a step may be reading it
    if days is not None and entry.unused_seconds > days * DAY_SECONDS:
        return f"not asked for for {days:g} days"
    if held > most:
        return f"all of them are more than {most:,} bytes"
    return None


def _entries(house: House) -> Iterator[_Entry]:
    """But for those whose files are all linked elsewhere too, as served ones are: they gain nothing."""
    folder = base_files_folder(house.settings.cache_dir)
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.startswith("."):  # one that is being removed
            continue
        with suppress(FileNotFoundError):  # one that has just gone
            entry = _Entry(path, freed_bytes(path), time.time() - path.stat().st_mtime)
            if entry.bytes:
                yield entry


BASE_FILES: tuple[Rule, ...] = (BaseFiles(),)
