"""HTTP of a model's own documents.

They lie in a collection like any other, made at the first import: it is also listed among the vector stores,
searched as they are, and can serve other models. It goes with the model's name.
"""

from typing import Annotated

from fastapi import Depends

from api.idempotency import REUSED_KEY, repeatable
from api.pages import Page, page
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from api.vector_stores.file_routes import Status
from api.vector_stores.ingesting import all_wanted, ingest
from api.vector_stores.routes import Window
from api.vector_stores.schemas import (
    BatchOut,
    BatchRequest,
    DocumentDeleted,
    DocumentOut,
    DocumentsDeleted,
)
from api.vector_stores.views import batch_out, document_out
from db.errors import InvalidInput, NotFound
from db.models import Collection, Model
from db.queries.collections import create_collection, empty, own_collection
from db.queries.documents import document_as_told, get_document, list_documents
from db.queries.models import get_model, named_model
from serving.backends.routing import EMBEDDING_MODEL

router = make_router("models")

DOCUMENTS = "/v1/models/{model:path}/documents"


@router.post(
    DOCUMENTS,
    status_code=202,
    response_model=BatchOut,
    summary="Import documents into a model's own collection",
    responses=REUSED_KEY,
)
@repeatable
def import_model_documents(unit: Unit, model: str, body: BatchRequest) -> BatchOut:
    """One job reads them all; one that cannot be read stops no other. The answer's id is the job's."""
    collection = _collection_to_fill(unit, _named(unit, model))
    job, _ = ingest(unit, collection, all_wanted(body), param=body.named_by, replace=body.replace)
    return batch_out(unit.session, job, collection.id)


@router.get(DOCUMENTS, response_model=Page[DocumentOut], summary="List a model's documents, newest first")
@transactional
def list_model_documents(
    unit: Unit, model: str, window: Annotated[Window, Depends()], filter: Status | None = None
) -> Page[DocumentOut]:
    collection = own_collection(unit.session, _named(unit, model))
    if collection is None:
        return page([], has_more=False)
    rows, more = list_documents(unit.session, collection_id=collection.id, status=filter, **window.place())
    return page([document_out(*row) for row in rows], more)


@router.delete(DOCUMENTS, response_model=DocumentsDeleted, summary="Delete all documents of a model")
@transactional
def delete_model_documents(unit: Unit, model: str) -> DocumentsDeleted:
    """The files themselves stay, and so does the collection. What is still being read is given up."""
    named = _named(unit, model)
    collection = own_collection(unit.session, named, lock=True)
    return DocumentsDeleted(
        model=named.name,
        collection_id=collection.id if collection is not None else None,
        documents=empty(unit.session, collection) if collection is not None else 0,
    )


@router.get(f"{DOCUMENTS}/{{file_id}}", response_model=DocumentOut, summary="Look at a model's document")
@transactional
def get_model_document(unit: Unit, model: str, file_id: str) -> DocumentOut:
    collection = _own(unit, model, file_id)
    document = get_document(unit.session, collection.id, file_id, project_id=unit.project_id)
    return document_out(*document_as_told(unit.session, document.id))


@router.delete(
    f"{DOCUMENTS}/{{file_id}}", response_model=DocumentDeleted, summary="Delete a model's document"
)
@transactional
def delete_model_document(unit: Unit, model: str, file_id: str) -> DocumentDeleted:
    """The file itself stays."""
    collection = _own(unit, model, file_id, lock=True)
    unit.session.delete(
        get_document(unit.session, collection.id, file_id, project_id=unit.project_id, lock=True)
    )
    return DocumentDeleted(id=file_id)


def _named(unit: Unit, reference: str) -> Model:
    if reference == EMBEDDING_MODEL:
        raise InvalidInput("The embedding model answers no prompts: it has no documents.", param="model")
    return named_model(unit.session, unit.project_id, reference)


def _collection_to_fill(unit: Unit, model: Model) -> Collection:
    """The model's own collection, locked, and made where there is none yet."""
    collection = own_collection(unit.session, model, lock=True)
    if collection is None:
        # Of two first imports, the second finds what the first has made.
        get_model(unit.session, unit.project_id, model.name, lock=True)
        collection = own_collection(unit.session, model, lock=True)
    if collection is None:
        collection = create_collection(unit.session, project_id=unit.project_id, name=model.name, model=model)
    return collection


def _own(unit: Unit, reference: str, file_id: str, *, lock: bool = False) -> Collection:
    model = _named(unit, reference)
    collection = own_collection(unit.session, model, lock=lock)
    if collection is None:
        raise NotFound(f"The model {model.name} has no document {file_id!r}.", param="file_id")
    return collection
