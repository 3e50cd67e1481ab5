"""What happens to files: a row for an upload, and deletion while nobody needs them."""

from typing import get_args

from sqlalchemy import or_, select

from api.files.schemas import FileOut, UploadPurpose
from api.files.upload import Uploaded
from api.pages import unix_seconds
from api.quotas import admit_bytes
from api.unit_of_work import Unit
from api.validation import NOT_YET
from db.errors import Conflict, InvalidInput
from db.models import File, Job
from db.params import FILE_FIELDS
from db.queries.documents import unfinished_document_of
from db.queries.files import get_file
from db.states import ENDED_JOB

DEFAULT_PURPOSE = "fine-tune"


def file_out(file: File) -> FileOut:
    return FileOut(
        id=file.id,
        bytes=file.bytes,
        created_at=unix_seconds(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        sha256=file.sha256,
    )


def purpose_of(fields: dict[str, str]) -> str:
    """Check the form's small fields.

    Raises:
        InvalidInput: one is unknown, or the purpose is none that there is.
    """
    for name in fields:
        if name.partition("[")[0] in NOT_YET:
            raise InvalidInput(
                f"{name} is not supported by this version of Lathe: leave it out.",
                param=name,
                code="not_supported",
            )
        if name != "purpose":
            raise InvalidInput(
                f"There is no field {name}. There are: file, purpose.", param=name, code="unknown_field"
            )
    purpose = fields.get("purpose", DEFAULT_PURPOSE)
    if purpose not in get_args(UploadPurpose):
        raise InvalidInput(f"purpose must be one of {', '.join(get_args(UploadPurpose))}.", param="purpose")
    return purpose


def add_file(unit: Unit, uploaded: Uploaded, purpose: str) -> FileOut:
    """Make the row of an upload.

    Raises:
        QuotaExceeded: the project may not store as much.
    """
    admit_bytes(unit, uploaded.bytes)
    file = File(
        id=uploaded.id,
        project_id=unit.project_id,
        purpose=purpose,
        filename=uploaded.filename,
        bytes=uploaded.bytes,
        sha256=uploaded.sha256,
        path=uploaded.path,
    )
    unit.session.add(file)
    unit.session.flush()
    return file_out(file)


def delete_file(unit: Unit, file_id: str) -> None:
    """Remove a file.

    Raises:
        NotFound: there is none by that id.
        Conflict: a job that has not ended needs it.
    """
    file = get_file(unit.session, file_id, project_id=unit.project_id, lock="update")
    needing = select(Job.id).where(
        Job.project_id == unit.project_id,
        Job.status.not_in(ENDED_JOB),
        or_(*(Job.params[field].as_string() == file.id for field in FILE_FIELDS)),
    )
    job_id = unit.session.scalars(needing.limit(1)).first()
    document = unfinished_document_of(unit.session, file.id)
    job_id = document.job_id if document is not None else job_id
    if job_id is not None:
        raise Conflict(f"Job {job_id} needs this file: cancel it, or wait until it ends.", code="file_in_use")
    path = unit.settings.storage_root / file.path
    unit.session.delete(file)
    unit.after_commit(lambda: path.unlink(missing_ok=True))
