"""HTTP of collections: OpenAI's vector stores."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from sqlalchemy import func

from api.chat.passing import unless_left
from api.errors import CONFLICT
from api.idempotency import REUSED_KEY, repeatable
from api.pages import After, Limit, Page, page
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from api.vector_stores.ingesting import Wanted, chunking_of, ingest
from api.vector_stores.schemas import (
    CollectionChange,
    CollectionDeleted,
    CollectionOut,
    CollectionRequest,
    SearchOut,
    SearchRequest,
)
from api.vector_stores.searching import search
from api.vector_stores.views import collections_out
from db.queries.collections import create_collection, get_collection, list_collections

router = make_router("collections")

Before = Annotated[str | None, Query(max_length=200, description="The `first_id` of the page after.")]


class Window:
    """Which page of a list that can be read both ways."""

    def __init__(
        self,
        after: After = None,
        before: Before = None,
        limit: Limit = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> None:
        self._place = {"after": after, "before": before, "limit": limit, "ascending": order == "asc"}

    def place(self) -> dict[str, Any]:
        return self._place


@router.post(
    "/v1/vector_stores", response_model=CollectionOut, summary="Make a collection", responses=REUSED_KEY
)
@repeatable
def create_vector_store(unit: Unit, body: CollectionRequest) -> CollectionOut:
    """With `file_ids` a job is queued that reads them into it."""
    metadata = dict(body.metadata or {})
    if body.description:
        metadata.setdefault("description", body.description)
    collection = create_collection(
        unit.session,
        project_id=unit.project_id,
        name=body.name,
        metadata=metadata,
        expires_after_days=body.expires_after.days if body.expires_after else None,
    )
    if body.file_ids:
        chunking = chunking_of(body.chunking_strategy)
        ingest(
            unit,
            collection,
            [Wanted(file_id, {}, chunking) for file_id in body.file_ids],
            param="file_ids",
        )
    return collections_out(unit.session, [collection])[0]


@router.get("/v1/vector_stores", response_model=Page[CollectionOut], summary="List collections, newest first")
@transactional
def list_vector_stores(unit: Unit, window: Annotated[Window, Depends()]) -> Page[CollectionOut]:
    rows, more = list_collections(unit.session, project_id=unit.project_id, **window.place())
    return page(collections_out(unit.session, rows), more)


@router.get(
    "/v1/vector_stores/{vector_store_id}", response_model=CollectionOut, summary="Look at a collection"
)
@transactional
def get_vector_store(unit: Unit, vector_store_id: str) -> CollectionOut:
    collection = get_collection(unit.session, vector_store_id, project_id=unit.project_id)
    return collections_out(unit.session, [collection])[0]


@router.post(
    "/v1/vector_stores/{vector_store_id}", response_model=CollectionOut, summary="Change a collection"
)
@transactional
def change_vector_store(unit: Unit, vector_store_id: str, body: CollectionChange) -> CollectionOut:
    collection = get_collection(unit.session, vector_store_id, project_id=unit.project_id, lock=True)
    given = body.model_fields_set
    if body.name is not None:
        collection.name = body.name
    if "metadata" in given:
        collection.notes = body.metadata or {}
    if "expires_after" in given:
        collection.expires_after_days = body.expires_after.days if body.expires_after else None
        collection.last_active_at = func.clock_timestamp()
    unit.session.flush()
    return collections_out(unit.session, [collection])[0]


@router.delete(
    "/v1/vector_stores/{vector_store_id}", response_model=CollectionDeleted, summary="Delete a collection"
)
@transactional
def delete_vector_store(unit: Unit, vector_store_id: str) -> CollectionDeleted:
    """Its documents go with it; the files stay."""
    collection = get_collection(unit.session, vector_store_id, project_id=unit.project_id, lock=True)
    unit.session.delete(collection)
    return CollectionDeleted(id=vector_store_id)


@router.post(
    "/v1/vector_stores/{vector_store_id}/search",
    response_model=SearchOut,
    summary="Search a collection",
    responses=CONFLICT,
)
async def search_vector_store(request: Request, vector_store_id: str, body: SearchRequest) -> SearchOut:
    """Passages with their document, page, section and characters, best first."""
    return await unless_left(request, lambda: search(services_of(request), vector_store_id, body))
