"""HTTP of a collection's documents: OpenAI's vector store files and file batches."""

from typing import Annotated, Literal

from fastapi import Depends, Response

from api.errors import CONFLICT
from api.idempotency import REUSED_KEY, repeatable
from api.pages import Page, page
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from api.vector_stores.ingesting import all_wanted, ingest, wanted
from api.vector_stores.routes import Window
from api.vector_stores.schemas import (
    AttributesChange,
    BatchOut,
    BatchRequest,
    ContentPage,
    DocumentDeleted,
    DocumentOut,
    FileRequest,
    TextContent,
)
from api.vector_stores.views import batch_out, document_out
from db.errors import NotFound
from db.models import Document, Job
from db.queries.collections import get_collection
from db.queries.documents import document_as_told, get_document, list_documents
from db.queries.jobs import cancel_job, get_job
from db.states import JobKind
from retrieval.content import PAGE_SEPARATOR

router = make_router("collections")

Status = Literal["in_progress", "completed", "failed", "cancelled"]
POLL_AFTER = {"openai-poll-after-ms": "500"}
STORE = "/v1/vector_stores/{vector_store_id}"


@router.post(
    f"{STORE}/files", response_model=DocumentOut, summary="Put a file into a collection", responses=REUSED_KEY
)
@repeatable
def create_vector_store_file(unit: Unit, vector_store_id: str, body: FileRequest) -> DocumentOut:
    """A job reads it. A file that is there already, and cut the same way, costs nothing."""
    collection = get_collection(unit.session, vector_store_id, project_id=unit.project_id, lock=True)
    _, [document] = ingest(unit, collection, [wanted(body)], param="file_id")
    return _document_out(unit, document)


@router.get(
    f"{STORE}/files", response_model=Page[DocumentOut], summary="List a collection's files, newest first"
)
@transactional
def list_vector_store_files(
    unit: Unit,
    vector_store_id: str,
    window: Annotated[Window, Depends()],
    filter: Status | None = None,
) -> Page[DocumentOut]:
    get_collection(unit.session, vector_store_id, project_id=unit.project_id)
    rows, more = list_documents(
        unit.session,
        collection_id=vector_store_id,
        status=filter,
        **window.place(),
    )
    return page([document_out(*row) for row in rows], more)


@router.get(
    f"{STORE}/files/{{file_id}}", response_model=DocumentOut, summary="Look at a file of a collection"
)
@transactional
def get_vector_store_file(unit: Unit, vector_store_id: str, file_id: str, response: Response) -> DocumentOut:
    response.headers.update(POLL_AFTER)
    return _document_out(
        unit, get_document(unit.session, vector_store_id, file_id, project_id=unit.project_id)
    )


@router.post(
    f"{STORE}/files/{{file_id}}", response_model=DocumentOut, summary="Change the attributes of a file"
)
@transactional
def change_vector_store_file(
    unit: Unit, vector_store_id: str, file_id: str, body: AttributesChange
) -> DocumentOut:
    document = get_document(unit.session, vector_store_id, file_id, project_id=unit.project_id, lock=True)
    document.attributes = body.attributes or {}
    unit.session.flush()
    return _document_out(unit, document)


@router.delete(
    f"{STORE}/files/{{file_id}}", response_model=DocumentDeleted, summary="Take a file out of a collection"
)
@transactional
def delete_vector_store_file(unit: Unit, vector_store_id: str, file_id: str) -> DocumentDeleted:
    """The file itself stays."""
    get_collection(unit.session, vector_store_id, project_id=unit.project_id, lock=True)
    unit.session.delete(
        get_document(unit.session, vector_store_id, file_id, project_id=unit.project_id, lock=True)
    )
    return DocumentDeleted(id=file_id)


@router.get(
    f"{STORE}/files/{{file_id}}/content", response_model=ContentPage, summary="The text read of a file"
)
@transactional
def get_vector_store_file_content(unit: Unit, vector_store_id: str, file_id: str) -> ContentPage:
    """An entry a page. Joined by empty lines they are the text that passages' `start` and `end` count in."""
    document = get_document(unit.session, vector_store_id, file_id, project_id=unit.project_id)
    text, starts = document.text or "", document.page_starts or [0]
    ends = [start - len(PAGE_SEPARATOR) for start in starts[1:]]
    pages = [text[start:end] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return ContentPage(data=[TextContent(text=page) for page in pages])


@router.post(
    f"{STORE}/file_batches",
    response_model=BatchOut,
    summary="Put files into a collection",
    responses=REUSED_KEY,
)
@repeatable
def create_vector_store_file_batch(unit: Unit, vector_store_id: str, body: BatchRequest) -> BatchOut:
    """One job reads them all; one that cannot be read stops no other. The batch's id is the job's."""
    collection = get_collection(unit.session, vector_store_id, project_id=unit.project_id, lock=True)
    job, _ = ingest(unit, collection, all_wanted(body), param=body.named_by, replace=body.replace)
    return batch_out(unit.session, job, vector_store_id)


@router.get(f"{STORE}/file_batches/{{batch_id}}", response_model=BatchOut, summary="Look at a batch")
@transactional
def get_vector_store_file_batch(
    unit: Unit, vector_store_id: str, batch_id: str, response: Response
) -> BatchOut:
    response.headers.update(POLL_AFTER)
    return batch_out(unit.session, _batch(unit, vector_store_id, batch_id), vector_store_id)


@router.post(
    f"{STORE}/file_batches/{{batch_id}}/cancel",
    response_model=BatchOut,
    summary="Cancel a batch",
    responses=CONFLICT,
)
@transactional
def cancel_vector_store_file_batch(unit: Unit, vector_store_id: str, batch_id: str) -> BatchOut:
    """What was brought in before stays."""
    _batch(unit, vector_store_id, batch_id)
    job = cancel_job(unit.session, batch_id, project_id=unit.project_id)
    return batch_out(unit.session, job, vector_store_id)


@router.get(
    f"{STORE}/file_batches/{{batch_id}}/files",
    response_model=Page[DocumentOut],
    summary="List a batch's files, newest first",
)
@transactional
def list_files_in_vector_store_batch(
    unit: Unit,
    vector_store_id: str,
    batch_id: str,
    window: Annotated[Window, Depends()],
    filter: Status | None = None,
) -> Page[DocumentOut]:
    batch = _batch(unit, vector_store_id, batch_id)
    rows, more = list_documents(
        unit.session,
        collection_id=vector_store_id,
        file_ids=batch.params["files"],
        status=filter,
        **window.place(),
    )
    return page([document_out(*row) for row in rows], more)


def _document_out(unit: Unit, document: Document) -> DocumentOut:
    return document_out(*document_as_told(unit.session, document.id))


def _batch(unit: Unit, vector_store_id: str, batch_id: str) -> Job:
    job = get_job(unit.session, batch_id, project_id=unit.project_id)
    if job.kind != JobKind.INGEST or job.params["collection"] != vector_store_id:
        raise NotFound(f"The collection {vector_store_id} has no batch {batch_id!r}.", param="batch_id")
    return job
