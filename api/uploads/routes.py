"""HTTP of uploads, in OpenAI's shape: `client.uploads`."""

from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from api.auditing import tell_change
from api.errors import CONFLICT
from api.files.upload import Target, new_target, receive_upload
from api.idempotency import REUSED_KEY, repeatable
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from api.uploads import service
from api.uploads.schemas import CompleteRequest, PartOut, UploadOut, UploadRequest
from db.errors import InvalidInput
from db.ids import new_id
from db.storage import file_path, upload_folder

router = make_router("files")

PART = "data"
PART_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [PART],
                    "properties": {PART: {"type": "string", "format": "binary"}},
                },
                "example": {PART: "the first 64 MiB"},
            }
        },
    }
}


@router.post("/v1/uploads", response_model=UploadOut, summary="Announce a large file", responses=REUSED_KEY)
@repeatable
def create_upload(unit: Unit, body: UploadRequest) -> UploadOut:
    """It comes in parts, and lasts an hour until it is completed."""
    return service.begin(unit, body)


@router.post(
    "/v1/uploads/{upload_id}/parts",
    response_model=PartOut,
    summary="Send a part of a large file",
    openapi_extra=PART_BODY,
    responses=CONFLICT,
)
async def add_upload_part(request: Request, upload_id: str) -> PartOut:
    """A multipart form of `data`, of at most 64 MiB; several may come at once. It is written as it comes."""
    services = services_of(request)
    root = services.settings.storage_root
    left = await services.run_in_transaction(lambda unit: service.bytes_left(unit, upload_id))
    part_id = new_id("part")
    target = Target(
        root,
        part_id,
        min(left, service.MAX_PART_BYTES),
        folder=upload_folder(root, upload_id),
        too_large=service.too_large(left),
        param=PART,
    )
    with target:
        received = await receive_upload(
            request.stream(),
            request.headers.get("content-type", ""),
            target,
            part_id,
            expected_bytes=int(request.headers.get("content-length", "0")),
            part=PART,
        )
        for name in received.fields:
            raise InvalidInput(
                f"There is no field {name}. There is: {PART}.", param=name, code="unknown_field"
            )
        await run_in_threadpool(target.keep)

        def add(unit: Unit) -> PartOut:
            part = service.add_part(unit, upload_id, received)
            tell_change(unit, request, part)
            return part

        try:
            return await services.run_in_transaction(add)
        except Exception:
            target.take_back()
            raise


@router.post(
    "/v1/uploads/{upload_id}/complete",
    response_model=UploadOut,
    summary="Make a file of an upload's parts",
    responses=CONFLICT,
)
async def complete_upload(request: Request, upload_id: str, body: CompleteRequest) -> UploadOut:
    """In the order that is given. To complete an upload twice is the same as once."""
    services = services_of(request)
    settings = services.settings
    async with services.turns.of(("upload", upload_id)):
        found = await services.run_in_transaction(
            lambda unit: service.parts_of(unit, upload_id, body.part_ids)
        )
        if isinstance(found, UploadOut):
            return found
        file_id, target = new_target(settings.storage_root, settings.max_file_bytes)
        with target:
            expected = sum(path.stat().st_size for path in found if path.exists())
            await run_in_threadpool(service.assemble, found, target, expected, body.md5)

            def complete(unit: Unit) -> UploadOut:
                upload = service.complete(unit, upload_id, file_id, file_path(file_id), target)
                tell_change(unit, request, upload)
                return upload

            try:
                return await services.run_in_transaction(complete)
            except Exception:
                target.take_back()
                raise


@router.post(
    "/v1/uploads/{upload_id}/cancel",
    response_model=UploadOut,
    summary="Give up an upload",
    responses=CONFLICT,
)
@transactional
def cancel_upload(unit: Unit, upload_id: str) -> UploadOut:
    """Its parts go at once."""
    return service.cancel(unit, upload_id)
