"""HTTP of files, in OpenAI's shape."""

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auditing import tell_change
from api.errors import CONFLICT
from api.files.schemas import FileDeleted, FileOut, Purpose
from api.files.sending import send_file
from api.files.service import add_file, delete_file, file_out, wanted
from api.files.upload import new_target, receive_upload
from api.pages import After, Page, page
from api.quotas import admit_bytes
from api.routing import make_router
from api.security import MULTIPART_OVERHEAD_BYTES
from api.unit_of_work import Unit, services_of, transactional
from db.queries.files import get_file, list_files

router = make_router("files")

UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "CSV, JSONL or text."},
                        "purpose": {
                            "type": "string",
                            "default": "fine-tune",
                            "enum": ["fine-tune", "assistants", "batch", "user_data", "evals", "vision"],
                        },
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                },
                "example": {"file": "faq.csv", "purpose": "fine-tune"},
            }
        },
    }
}


@router.post("/v1/files", response_model=FileOut, summary="Upload a file", openapi_extra=UPLOAD_BODY)
async def upload_file(request: Request) -> FileOut:
    """A multipart form of `file` and, if you like, `purpose` and `expires_after`. It is written to disk as it
    comes."""
    services = services_of(request)
    settings = services.settings
    announced = int(request.headers.get("content-length", "0"))
    # Before any of it is written; once more, to the byte, when all of it is there.
    await services.run_in_transaction(lambda unit: admit_bytes(unit, announced - MULTIPART_OVERHEAD_BYTES))
    file_id, target = new_target(settings.storage_root, settings.max_file_bytes)
    with target:
        uploaded = await receive_upload(
            request.stream(),
            request.headers.get("content-type", ""),
            target,
            file_id,
            expected_bytes=announced,
        )
        asked = wanted(uploaded.fields)
        await run_in_threadpool(target.keep)

        def add(unit: Unit) -> FileOut:
            file = add_file(unit, uploaded, asked)
            tell_change(unit, request, file)
            return file

        try:
            return await services.run_in_transaction(add)
        except Exception:
            target.take_back()
            raise


@router.get("/v1/files", response_model=Page[FileOut], summary="List files, newest first")
@transactional
def list_all_files(
    unit: Unit,
    purpose: Purpose | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    order: Literal["asc", "desc"] = "desc",
) -> Page[FileOut]:
    files, more = list_files(
        unit.session,
        project_id=unit.project_id,
        purpose=purpose,
        after=after,
        limit=limit,
        ascending=order == "asc",
    )
    return page([file_out(file) for file in files], more)


@router.get("/v1/files/{file_id}", response_model=FileOut, summary="Look at a file")
@transactional
def get_one_file(unit: Unit, file_id: str) -> FileOut:
    return file_out(get_file(unit.session, file_id, project_id=unit.project_id))


@router.get(
    "/v1/files/{file_id}/content",
    summary="The bytes of a file",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file; takes Range."}},
)
@transactional
def get_file_content(unit: Unit, request: Request, file_id: str) -> Response:
    file = get_file(unit.session, file_id, project_id=unit.project_id)
    return send_file(
        unit.settings.storage_root, file.path, name=file.filename, sha256=file.sha256, request=request
    )


@router.delete("/v1/files/{file_id}", response_model=FileDeleted, summary="Delete a file", responses=CONFLICT)
@transactional
def delete_one_file(unit: Unit, file_id: str) -> FileDeleted:
    """Refused with 409 while a job that has not ended needs it."""
    delete_file(unit, file_id)
    return FileDeleted(id=file_id)
