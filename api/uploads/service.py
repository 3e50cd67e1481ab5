"""What happens to uploads: announced, filled part by part, put together, or given up."""

import hashlib
import shutil
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete, func, select

from api.errors import TooLarge
from api.files.service import Wanted, add_file, file_out
from api.files.upload import WRITE_BYTES, Target, Uploaded, clean_filename
from api.pages import unix_seconds
from api.quotas import admit_bytes
from api.unit_of_work import Unit
from api.uploads.schemas import PartOut, UploadOut, UploadRequest
from db.errors import Conflict, InvalidInput, NotFound
from db.ids import new_id
from db.models import File, Upload, UploadPart
from db.session import clock
from db.storage import upload_folder

LASTS = timedelta(hours=1)
MAX_PART_BYTES = 64 * 1024 * 1024


def begin(unit: Unit, body: UploadRequest) -> UploadOut:
    """Announce a file.

    Raises:
        TooLarge: it is larger than a file may be.
        QuotaExceeded: the project may not store as much.
    """
    limit = unit.settings.max_file_bytes
    if body.bytes > limit:
        raise TooLarge(f"A file may have at most {limit} bytes here (LATHE_MAX_FILE_BYTES).", param="bytes")
    admit_bytes(unit, body.bytes)
    now = clock(unit.session)
    upload = Upload(
        id=new_id("upload"),
        project_id=unit.project_id,
        purpose=body.purpose,
        filename=clean_filename(body.filename),
        bytes=body.bytes,
        status="pending",
        file_seconds=body.expires_after.seconds if body.expires_after is not None else None,
        created_at=now,
        expires_at=now + LASTS,
    )
    unit.session.add(upload)
    unit.session.flush()
    return _upload_out(unit, upload)


def bytes_left(unit: Unit, upload_id: str) -> int:
    """How many more bytes an upload takes.

    Raises:
        NotFound, Conflict: there is none by that id, or it takes no more parts.
    """
    upload = _pending(unit, upload_id)
    return upload.bytes - _received(unit, upload)


def add_part(unit: Unit, upload_id: str, part: Uploaded) -> PartOut:
    """Make the row of a part whose bytes are there.

    Raises:
        TooLarge: with others that came meanwhile it is more than was announced.
        NotFound, Conflict: as `bytes_left`.
    """
    upload = _pending(unit, upload_id, lock=True)
    left = upload.bytes - _received(unit, upload)
    if part.bytes > left:
        raise TooLarge(too_large(left), param="data")
    row = UploadPart(id=part.id, upload_id=upload.id, bytes=part.bytes)
    unit.session.add(row)
    unit.session.flush()
    return PartOut(id=row.id, created_at=unix_seconds(row.created_at), upload_id=upload.id)


def too_large(left: int) -> str:
    """What is said of a part of more bytes than fit."""
    return (
        f"This part may have at most {min(left, MAX_PART_BYTES)} bytes: none has more than {MAX_PART_BYTES}, "
        "and all together have as many as the upload was announced with."
    )


def parts_of(unit: Unit, upload_id: str, part_ids: list[str]) -> list[Path] | UploadOut:
    """The parts' files in the order asked for; of an upload that is complete already, what came of it.

    Raises:
        InvalidInput: a part is unknown or named twice, or they come to another size than announced.
        NotFound, Conflict: as `bytes_left`.
    """
    upload = _find(unit, upload_id)
    if upload.status == "completed":
        return _upload_out(unit, upload)
    _pending(unit, upload_id)
    rows = unit.session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id))
    sizes = {part.id: part.bytes for part in rows}
    for number, part_id in enumerate(part_ids):
        if part_id not in sizes or part_id in part_ids[:number]:
            wrong = "names a part twice" if part_id in sizes else f"the upload has no part {part_id!r}"
            raise InvalidInput(f"part_ids[{number}]: {wrong}.", param=f"part_ids[{number}]")
    total = sum(sizes[part_id] for part_id in part_ids)
    if total != upload.bytes:
        raise InvalidInput(
            f"part_ids: these parts come to {total} bytes, and the upload was announced with {upload.bytes}.",
            param="part_ids",
            code="wrong_size",
        )
    folder = upload_folder(unit.settings.storage_root, upload.id)
    return [folder / part_id for part_id in part_ids]


def assemble(paths: list[Path], target: Target, expected_bytes: int, md5: str | None) -> None:
    """Write the parts one after another, never more than a little of them in memory.

    Raises:
        InvalidInput: the whole has another MD5 than `md5`.
        Conflict: a part's bytes are gone.
        Exhausted: the disk is full.
    """
    target.open(expected_bytes)
    digest = hashlib.md5(usedforsecurity=False)
    for path in paths:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise Conflict("The bytes of a part are gone: upload the file anew.", code="part_gone") from None
        with file:
            while block := file.read(WRITE_BYTES):
                digest.update(block)
                target.write(block)
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise InvalidInput(
            f"md5: the parts have {digest.hexdigest()} in this order: check the order, or send them anew.",
            param="md5",
            code="checksum_mismatch",
        )
    target.keep()


def complete(unit: Unit, upload_id: str, file_id: str, path: str, target: Target) -> UploadOut:
    """Make a file of what was put together.

    Raises:
        NotFound, Conflict: as `bytes_left`.
        QuotaExceeded: the project may not store as much any more.
    """
    upload = _pending(unit, upload_id, lock=True)
    upload.status, upload.file_id = "completed", file_id
    _let_parts_go(unit, upload)
    whole = Uploaded(file_id, upload.filename, path, target.bytes, target.sha256, {})
    add_file(unit, whole, Wanted(upload.purpose, upload.file_seconds))
    return _upload_out(unit, upload)


def cancel(unit: Unit, upload_id: str) -> UploadOut:
    """Give an upload up. To do it twice is the same as once.

    Raises:
        NotFound, Conflict: as `bytes_left`.
    """
    upload = _find(unit, upload_id, lock=True)
    if upload.status == "completed":
        raise Conflict("The upload is a file already: delete that.", code="upload_not_pending")
    upload.status = "cancelled"
    _let_parts_go(unit, upload)
    return _upload_out(unit, upload)


def _let_parts_go(unit: Unit, upload: Upload) -> None:
    unit.session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
    unit.session.flush()
    folder = upload_folder(unit.settings.storage_root, upload.id)
    unit.after_commit(lambda: shutil.rmtree(folder, ignore_errors=True))


def _find(unit: Unit, upload_id: str, *, lock: bool = False) -> Upload:
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == unit.project_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    upload = unit.session.scalars(query).one_or_none()
    if upload is None:
        raise NotFound(
            f"There is no upload {upload_id!r}: it begins with POST /v1/uploads, and lasts an hour.",
            param="id",
        )
    return upload


def _pending(unit: Unit, upload_id: str, *, lock: bool = False) -> Upload:
    upload = _find(unit, upload_id, lock=lock)
    status = _status(unit, upload)
    if status != "pending":
        raise Conflict(
            f"The upload is {status}: begin another with POST /v1/uploads.", code="upload_not_pending"
        )
    return upload


def _received(unit: Unit, upload: Upload) -> int:
    query = select(func.coalesce(func.sum(UploadPart.bytes), 0)).where(UploadPart.upload_id == upload.id)
    return int(unit.session.scalars(query).one())


def _status(unit: Unit, upload: Upload) -> str:
    over = upload.status == "pending" and upload.expires_at <= clock(unit.session)
    return "expired" if over else upload.status


def _upload_out(unit: Unit, upload: Upload) -> UploadOut:
    file = unit.session.get(File, upload.file_id) if upload.file_id is not None else None
    return UploadOut.model_validate(
        {
            "id": upload.id,
            "bytes": upload.bytes,
            "created_at": unix_seconds(upload.created_at),
            "expires_at": unix_seconds(upload.expires_at),
            "filename": upload.filename,
            "purpose": upload.purpose,
            "status": _status(unit, upload),
            "file": file_out(file) if file is not None else None,
        }
    )
