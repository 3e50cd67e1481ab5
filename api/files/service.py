"""What happens to files: a row for an upload, and deletion while nobody needs them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import get_args

from pydantic import ValidationError
from sqlalchemy import select

from api.files.schemas import ExpiresAfter, FileOut, UploadPurpose
from api.files.upload import Uploaded
from api.pages import unix_seconds, unix_seconds_or_none
from api.quotas import admit_bytes
from api.unit_of_work import Unit
from db.errors import Conflict, InvalidInput
from db.models import File, Job
from db.queries.documents import unfinished_document_of
from db.queries.files import get_file, names_file
from db.session import clock
from db.states import ENDED_JOB

DEFAULT_PURPOSE = "fine-tune"
EXPIRY_FIELDS = {f"expires_after[{part}]": part for part in ExpiresAfter.model_fields}


def file_out(file: File) -> FileOut:
    return FileOut(
        id=file.id,
        bytes=file.bytes,
        created_at=unix_seconds(file.created_at),
        filename=file.filename,
        purpose=file.purpose,
        expires_at=unix_seconds_or_none(file.expires_at),
        sha256=file.sha256,
    )


@dataclass(frozen=True)
class Wanted:
    """What an upload is for, and after how many seconds it expires; None: never."""

    purpose: str
    seconds: int | None


def wanted(fields: dict[str, str]) -> Wanted:
    """Check the form's small fields.

    Raises:
        InvalidInput: one is unknown, the purpose is none that there is, or the time too long or too short.
    """
    for name in fields:
        if name != "purpose" and name not in EXPIRY_FIELDS:
            known = ", ".join(["file", "purpose", *EXPIRY_FIELDS])
            raise InvalidInput(
                f"There is no field {name}. There are: {known}.", param=name, code="unknown_field"
            )
    purpose = fields.get("purpose", DEFAULT_PURPOSE)
    if purpose not in get_args(UploadPurpose):
        raise InvalidInput(f"purpose must be one of {', '.join(get_args(UploadPurpose))}.", param="purpose")
    expiry = {part: fields[name] for name, part in EXPIRY_FIELDS.items() if name in fields}
    if not expiry:
        return Wanted(purpose, None)
    try:
        return Wanted(purpose, ExpiresAfter.model_validate(expiry).seconds)
    except ValidationError as error:
        raise InvalidInput(
            "expires_after has an anchor, which is created_at, and seconds from 3600 to 2592000.",
            param=f"expires_after[{error.errors()[0]['loc'][0]}]",
        ) from None


def add_file(unit: Unit, uploaded: Uploaded, wanted: Wanted) -> FileOut:
    """Make the row of an upload.

    Raises:
        QuotaExceeded: the project may not store as much.
    """
    admit_bytes(unit, uploaded.bytes)
    now = clock(unit.session)
    file = File(
        id=uploaded.id,
        project_id=unit.project_id,
        purpose=wanted.purpose,
        filename=uploaded.filename,
        bytes=uploaded.bytes,
        sha256=uploaded.sha256,
        path=uploaded.path,
        created_at=now,
        expires_at=now + timedelta(seconds=wanted.seconds) if wanted.seconds is not None else None,
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
        names_file(file.id),
    )
    job_id = unit.session.scalars(needing.limit(1)).first()
    document = unfinished_document_of(unit.session, file.id)
    job_id = document.job_id if document is not None else job_id
    if job_id is not None:
        raise Conflict(f"Job {job_id} needs this file: cancel it, or wait until it ends.", code="file_in_use")
    path = unit.settings.storage_root / file.path
    unit.session.delete(file)
    unit.after_commit(lambda: path.unlink(missing_ok=True))
