"""What nobody owns: folders and files whose row is gone or never came, and what killed processes began."""

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.models import File, Job, ModelFile, Upload
from db.storage import prepared_projects, trash_folder
from retention.rule import Batch, Expired, House, Removal, Rule, freed_bytes, path_id
from serving.removal import remove_served
from serving.served_adapters import base_files_folder

LOOKED_AT_ONCE = 5000  # nearly all that is looked at belongs to a row
STAGED = re.compile(r"\.[^/]*\.[0-9a-f]{32}")  # as publishing and the caches write beside


class Leavings:
    """A rule about paths; `id` of what it finds is the path relative to the storage root, or absolute."""

    kind = ""
    why = ""

    def find(self, session: Session, house: House, cursor: str | None, limit: int) -> Batch:
        """In the order of their names, so that a batch can go on where the last one ended."""
        old = sorted(path for path in self.candidates(house) if is_old(path, house.leavings_seconds))
        batch = [path for path in old if cursor is None or str(path) > cursor][:LOOKED_AT_ONCE]
        items = [
            Expired(self.kind, path_id(house, path), self.why, freed_bytes(path))
            for path in self.unowned(session, batch)
        ]
        full = len(batch) == LOOKED_AT_ONCE
        return Batch(items, str(batch[-1]) if full else None, more=full)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        path = house.root / item.id  # an absolute one stays as it is
        if not is_old(path, house.leavings_seconds) or path not in set(self.unowned(session, [path])):
            return Removal.KEPT
        self.take_away(house, path)
        return Removal.DONE

    def candidates(self, house: House) -> Iterable[Path]:
        raise TypeError("a rule says where it looks")

    def unowned(self, session: Session, paths: list[Path]) -> Iterable[Path]:
        """Those of `paths` that belong to no row."""
        return paths

    def take_away(self, house: House, path: Path) -> None:
        _remove(path)


class WithoutRow(Leavings):
    """Of a folder whose entries bear the ids of rows: those whose row is gone, or never came."""

    def __init__(self, kind: str, folder: str, ids: InstrumentedAttribute[str], why: str) -> None:
        self.kind, self.why = kind, why
        self._folder, self._ids = folder, ids

    def candidates(self, house: House) -> Iterable[Path]:
        return _children(house.root / self._folder)

    def unowned(self, session: Session, paths: list[Path]) -> Iterable[Path]:
        known = set(session.scalars(select(self._ids).where(self._ids.in_([path.name for path in paths]))))
        return [path for path in paths if path.name not in known]


class ServedFiles(Leavings):
    """Files that llama-server's router serves for no model: of a job that failed while it published."""

    kind = "served file"
    why = "no model is served by it"

    def candidates(self, house: House) -> Iterable[Path]:
        return (path for path in _children(house.settings.served_models_dir) if path.suffix == ".gguf")

    def unowned(self, session: Session, paths: list[Path]) -> Iterable[Path]:
        names = ModelFile.backend_name.in_([path.stem for path in paths])
        known = set(session.scalars(select(ModelFile.backend_name).where(names)))
        return [path for path in paths if path.stem not in known]

    def take_away(self, house: House, path: Path) -> None:
        remove_served(house.settings, "llama_server", path.stem)


class Staging(Leavings):
    """What processes that were killed had begun to write beside its place."""

    kind = "unfinished file"
    why = "nobody writes it any more"

    def candidates(self, house: House) -> Iterable[Path]:
        cache = house.settings.cache_dir
        caches = (cache / "weights", base_files_folder(cache), *prepared_projects(house.root))
        for folder in (house.settings.served_models_dir, *caches):
            yield from (path for path in _children(folder) if STAGED.fullmatch(path.name))


class Trash(Leavings):
    """What was put out of the way."""

    kind = "trash"
    why = "it was removed already"

    def find(self, session: Session, house: House, cursor: str | None, limit: int) -> Batch:
        """What is found goes, so there is no place to go on from: the next batch is what is left."""
        found = list(_children(trash_folder(house.root)))
        items = [
            Expired(self.kind, path_id(house, path), self.why, freed_bytes(path)) for path in found[:limit]
        ]
        return Batch(items, more=len(found) > limit)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        _remove(house.root / item.id)
        return Removal.DONE


def is_old(path: Path, seconds: float) -> bool:
    """Whether nobody has made, linked, renamed or changed it for so long."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return time.time() - max(status.st_ctime, status.st_mtime) > seconds


def _children(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (folder / entry.name for entry in entries)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


LEAVINGS: tuple[Rule, ...] = (
    # Of jobs that were deleted by an API that died before their files were.
    WithoutRow("folder", "jobs", Job.id, "its job is gone"),
    # An upload is written under another name first, which belongs to no row either.
    WithoutRow("upload", "files", File.id, "it has no row"),
    WithoutRow("parts of an upload", "uploads", Upload.id, "its upload is gone"),
    ServedFiles(),
    Staging(),
    Trash(),
)
