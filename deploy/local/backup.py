"""A backup of a data folder: the database, the storage root and the passwords, also while all of it runs.

The database is dumped from one snapshot. Files are never changed once they have their name, so hard links to
all of them, made before the dump and once more after it, hold every file that the snapshot's rows name, but
for one that came and went in between; such are said. Then the links are copied in peace.

lathe-backup.json   what it is, and what is missing
database.dump       pg_dump's own format
secrets/            the passwords of the local servers
storage/            the storage root, with its id
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url

from db.disk import DISK_FULL, link_or_copy
from db.errors import Conflict, Exhausted, InvalidInput, LatheError, NotFound, StepFailed
from db.settings import Settings, child_environment
from db.storage import ID_FILE
from deploy.local import postgres
from deploy.local.database import reach

MANIFEST, DUMP, SECRETS, STORAGE = "lathe-backup.json", "database.dump", "secrets", "storage"
FORMAT = 1
TAR_MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz"}
# jobs/<job>/<step>/<attempt>/…: of an attempt that is not done, only its checkpoints are whole.
ATTEMPT = re.compile(r"(?P<folder>jobs/[^/]+/[^/]+/\d+)/(?P<inside>.+)")
CHECKPOINT = re.compile(r"checkpoints/checkpoint-\d+/.+")
LEFT_OUT = re.compile(r"(trash|prepared)(/.*)?|.*\.part")
NAMED_PATHS = """
    SELECT path FROM files UNION ALL SELECT path FROM artifacts UNION ALL SELECT path FROM checkpoints
    UNION ALL SELECT weights FROM model_versions WHERE weights IS NOT NULL
    UNION ALL SELECT 'served/' || backend_name || '.gguf' FROM model_files WHERE backend = 'llama_server'
"""


@dataclass
class Backup:
    """What a backup holds.

    Args:
        missing: paths that rows name and that were not there.
        linked: whether links held the files; else they were copied twice.
    """

    format: int
    lathe: str
    made_at: int
    storage_id: str
    revision: str
    jobs: int
    models: int
    files: int
    bytes: int
    missing: list[str] = field(default_factory=list)
    linked: bool = True


def back_up(settings: Settings, target: Path) -> Backup:
    """Write a backup to `target`, a folder that does not exist yet, or a .tar, .tar.gz or .tgz.

    Raises:
        InvalidInput: the target exists, or lies inside of what is backed up.
        Conflict: another backup is being made.
        NotFound: there is nothing to back up.
        Exhausted: the disk is full; as after any error, nothing is left of the backup.
    """
    target = target.expanduser().absolute()
    if target.exists():
        raise InvalidInput(f"{target} exists already: name a new one.", code="target_exists")
    if target.is_relative_to(settings.storage_root):
        raise InvalidInput(
            f"{target} is inside of what is backed up: name another place.", code="target_inside"
        )
    with reach(settings) as url, _staging(settings.data_dir) as staging:
        try:
            made = _gather(settings, url, staging)
        except OSError as error:
            raise unwritten(error, staging) from error
        beside = target.with_name(f".{target.name}.partial")
        _remove(beside)  # of one that was killed
        try:
            with _private():
                _write(staging, beside, tar_mode(target))
            beside.rename(target)
        except OSError as error:
            raise unwritten(error, target) from error
        finally:
            _remove(beside)
    return made


def unwritten(error: OSError, target: Path) -> LatheError:
    """What is told when the system does not let us write to `target`."""
    if error.errno in DISK_FULL:
        return Exhausted(f"The disk of {target} is full: nothing was left there.", code="disk_full")
    return LatheError(f"{target} could not be written: {error.strerror}.")


def tar_mode(path: Path) -> str | None:
    """How tarfile opens a new archive by that name; None for a folder."""
    return next((mode for ending, mode in TAR_MODES.items() if path.name.endswith(ending)), None)


@contextlib.contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A folder on the file system of the data, so that its files can be linked there.

    Raises:
        Conflict: somebody has one there.
    """
    with _alone(data_dir):
        for left in data_dir.glob(".backup-*"):  # of one that was killed
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=".backup-", dir=data_dir))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the lock of the folder itself, which nobody else takes; it ends with this process."""
    descriptor = os.open(data_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"Another backup of {data_dir} is being made: wait until it is done.", code="backup_running"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _gather(settings: Settings, url: str, staging: Path) -> Backup:
    root = settings.storage_root
    if not (root / ID_FILE).is_file():
        raise NotFound(f"{root} bears no id: no worker has ever used this data folder.")
    link_tree(root, staging / STORAGE)
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    try:
        with engine.connect() as connection:
            # The snapshot lives as long as this transaction, which does nothing meanwhile.
            connection.execute(text("SET idle_in_transaction_session_timeout = 0"))
            snapshot = connection.execute(text("SELECT pg_export_snapshot()")).scalar_one()
            _dump(url, snapshot, staging / DUMP)
            link_tree(root, staging / STORAGE)
            made = _describe(connection, root, staging / STORAGE)
    finally:
        engine.dispose()
    if (settings.data_dir / SECRETS).is_dir():
        shutil.copytree(settings.data_dir / SECRETS, staging / SECRETS)
    (staging / MANIFEST).write_text(json.dumps(asdict(made), indent=1))
    return made


def link_tree(source: Path, target: Path) -> None:
    """Link every file of `source` that is finished into `target`, where those that are there stay.

    What cannot be linked, as to another file system, is copied.
    """
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder) / name
            relative = str(path.relative_to(source))
            if path.is_symlink() or not _is_finished(source, relative):
                continue
            place = target / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                link_or_copy(path, place)


def _is_finished(root: Path, relative: str) -> bool:
    if LEFT_OUT.fullmatch(relative):
        return False
    within = ATTEMPT.fullmatch(relative)
    if within is None or CHECKPOINT.fullmatch(within["inside"]):
        return True
    return (root / within["folder"] / "manifest.json").is_file()


def _describe(connection: Connection, root: Path, storage: Path) -> Backup:
    def count(table: str) -> int:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())  # noqa: S608

    paths = list(connection.execute(text(NAMED_PATHS)).scalars())
    files = [path for path in storage.rglob("*") if path.is_file()]
    return Backup(
        format=FORMAT,
        lathe=version("lathe"),
        made_at=int(time.time()),
        storage_id=(storage / ID_FILE).read_text().strip(),
        revision=connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one(),
        jobs=count("jobs"),
        models=count("models WHERE current_version_id IS NOT NULL"),
        files=len(files),
        bytes=sum({(s := path.stat()).st_ino: s.st_size for path in files}.values()),
        missing=sorted(path for path in paths if not (storage / path).exists()),
        linked=(storage / ID_FILE).samefile(root / ID_FILE),
    )


def _dump(url: str, snapshot: str, target: Path) -> None:
    run_client(url, "pg_dump", "--format=custom", "--no-owner", f"--snapshot={snapshot}", f"--file={target}")


def run_client(url: str, program: str, *arguments: str) -> None:
    """Run one of Postgres's own programs on a database; the password is in no command line.

    Raises:
        StepFailed: it failed; with what it said.
    """
    parsed = make_url(url)
    # With all else that the URL says: a socket's folder, how to encrypt.
    shown = parsed._replace(drivername="postgresql", password=None).render_as_string()
    done = subprocess.run(
        [str(postgres.binaries() / program), *arguments, f"--dbname={shown}"],
        env=child_environment({"PGPASSWORD": parsed.password} if parsed.password else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StepFailed(
            f"{program} failed: {done.stderr.strip()[-2000:]}", exit_code=done.returncode, stderr=done.stderr
        )


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """What is made here holds passwords: it is for its owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _write(staging: Path, target: Path, mode: str | None) -> None:
    if mode is None:
        copy_tree(staging, target)
        return
    with tarfile.open(target, mode) as archive:  # type: ignore[call-overload]
        for path in sorted(staging.iterdir()):
            archive.add(path, arcname=path.name)  # a file that has several names is in it once


def copy_tree(source: Path, target: Path) -> None:
    """Copy a tree; names of one file become names of one copy.

    Raises:
        OSError: a part of it cannot be read, or not be written.
    """
    copied: dict[int, Path] = {}
    for folder, _, names in os.walk(source, onerror=_raise):
        place = target / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            path = Path(folder) / name
            inode = path.stat().st_ino
            if inode in copied:
                os.link(copied[inode], place / name)
            else:
                shutil.copy2(path, place / name)
                copied[inode] = place / name


def _raise(error: OSError) -> None:
    raise error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
