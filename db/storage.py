"""The storage root: one folder that belongs to one database, by an id that both hold."""

from pathlib import Path

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.errors import Conflict
from db.ids import new_id
from db.models import Installation

ID_FILE = "storage-id"


def claim_storage_root(session: Session, root: Path) -> str:
    """Tie `root` to this database on first use; afterwards check that it is still the same.

    Returns:
        The storage id.
    Raises:
        Conflict: the folder belongs to another database, or the database to another folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    id_file = root / ID_FILE
    borne = _read(id_file)
    offered = borne or new_id("storage")
    inserted = insert(Installation).values(storage_id=offered).on_conflict_do_nothing()
    ours = session.scalars(inserted.returning(Installation.storage_id)).one_or_none()
    expected = session.scalars(select(Installation.storage_id)).one()
    if ours is not None and borne is not None and _holds_files(root):
        # What no row names is removed after a day.
        raise Conflict(
            f"The storage folder {root} holds the files of another database, and this one is new: set "
            "DATABASE_URL to that one, or LATHE_DATA_DIR to a new folder. To give up what the folder holds, "
            f"remove {ID_FILE} there."
        )
    # Read again: whoever came first at the same moment wrote the file before its row could be seen.
    found = _read(id_file)
    if found is None and ours is not None:
        id_file.write_text(expected + "\n")
        found = expected
    if found == expected:
        return expected
    raise Conflict(
        f"The storage folder {root} bears the id {found or 'none'}, but the database belongs to {expected}: "
        "set LATHE_DATA_DIR to the folder that was used with this database."
    )


def _read(id_file: Path) -> str | None:
    return id_file.read_text().strip() if id_file.exists() else None


def _holds_files(root: Path) -> bool:
    return any(any((root / name).iterdir()) for name in ("jobs", "files", "served") if (root / name).is_dir())


def job_folder(root: Path, job_id: str) -> Path:
    return root / "jobs" / job_id


def file_path(file_id: str) -> str:
    """Where a file lies, relative to the root."""
    return f"files/{file_id}"


def upload_folder(root: Path, upload_id: str) -> Path:
    """The parts of an upload that is not complete yet."""
    return root / "uploads" / upload_id


def prepared_folder(root: Path, project_id: str) -> Path:
    """Rows that were read for trainings of a project, kept by what they depend on."""
    return root / "prepared" / project_id


def prepared_projects(root: Path) -> list[Path]:
    """The folders of all projects that have any."""
    folder = root / "prepared"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def trash_folder(root: Path) -> Path:
    """What is to be removed is renamed into it, which takes no time and cannot be half done."""
    return root / "trash"


def attempt_folder(root: Path, job_id: str, step: str, attempt: int) -> Path:
    return job_folder(root, job_id) / step / str(attempt)


def attempt_log(root: Path, job_id: str, step: str, attempt: int) -> Path:
    """What the attempt's processes printed."""
    return job_folder(root, job_id) / step / f"{attempt}.log"
