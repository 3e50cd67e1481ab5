"""Collections: made, found, listed, and counted."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from db.errors import Conflict, NotFound
from db.ids import new_id
from db.models import Collection, Document, Job, Model
from db.queries.documents import STATUS
from db.states import DocumentStatus

USED = text(
    """
    UPDATE collections SET last_active_at = clock_timestamp() WHERE id = (
        SELECT id FROM collections
        WHERE id = :id AND last_active_at < clock_timestamp() - interval '1 minute'
        FOR NO KEY UPDATE SKIP LOCKED
    )
    """
)


def create_collection(
    session: Session,
    *,
    project_id: str,
    name: str,
    metadata: dict[str, Any] | None = None,
    expires_after_days: int | None = None,
    model: Model | None = None,
) -> Collection:
    """Make a collection; with `model` as its own, of which it has none yet."""
    collection = Collection(
        id=new_id("vs"),
        project_id=project_id,
        model_id=model.id if model is not None else None,
        name=name,
        notes=metadata or {},
        expires_after_days=expires_after_days,
    )
    session.add(collection)
    session.flush()
    return collection


def get_collection(
    session: Session,
    collection_id: str,
    *,
    project_id: str,
    lock: bool = False,
    param: str = "vector_store_id",
) -> Collection:
    """Find a collection of a project.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(Collection).where(Collection.id == collection_id, Collection.project_id == project_id)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    collection = session.scalars(query).one_or_none()
    if collection is None:
        raise NotFound(f"There is no collection {collection_id!r}.", param=param)
    return collection


def own_collection(session: Session, model: Model, *, lock: bool = False) -> Collection | None:
    """The collection that holds a model's own documents; None before the first is imported."""
    query = select(Collection).where(Collection.model_id == model.id)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return session.scalars(query).one_or_none()


def own_collections(session: Session, project_id: str) -> dict[str, str]:
    """The ids of the models' own collections, by the models' ids."""
    query = select(Collection.model_id, Collection.id)
    query = query.where(Collection.project_id == project_id, Collection.model_id.is_not(None))
    return {row.model_id: row.id for row in session.execute(query)}


def empty(session: Session, collection: Collection) -> int:
    """Take all documents out of a locked collection; it may then take vectors of any embedding model.

    Returns:
        how many there were.
    """
    documents = delete(Document).where(Document.collection_id == collection.id)
    gone = session.scalars(documents.returning(Document.id)).all()
    collection.embedding_model = collection.embedding_revision = collection.dimensions = None
    touch(session, collection)
    return len(gone)


def expires_at(collection: Collection) -> datetime | None:
    if collection.expires_after_days is None:
        return None
    return collection.last_active_at + timedelta(days=collection.expires_after_days)


def is_expired(collection: Collection) -> bool:
    end = expires_at(collection)
    return end is not None and end <= datetime.now(UTC)


def refuse_expired(collection: Collection) -> None:
    """Raises:
    Conflict: nobody has used the collection for as long as it was to be kept.
    """
    if is_expired(collection):
        raise Conflict(
            f"The collection {collection.id} has expired: change its expires_after to use it again.",
            code="vector_store_expired",
        )


def list_collections(
    session: Session,
    *,
    project_id: str,
    after: str | None = None,
    before: str | None = None,
    limit: int = 20,
    ascending: bool = False,
) -> tuple[list[Collection], bool]:
    """One page of collections, newest first unless `ascending`, and whether there are more."""
    backwards = before is not None and after is None
    query = select(Collection).where(Collection.project_id == project_id)
    for mark, up in ((after, ascending), (before, not ascending)):
        if mark is not None:
            query = query.where(Collection.id > mark if up else Collection.id < mark)
    order = Collection.id if ascending != backwards else Collection.id.desc()
    rows = list(session.scalars(query.order_by(order).limit(limit + 1)))
    found = rows[:limit]
    return (found[::-1] if backwards else found), len(rows) > limit


def counts_of(session: Session, collection_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each collection its documents by status, and the bytes that their chunks take."""
    query = (
        select(Document.collection_id, STATUS, func.count(), func.coalesce(func.sum(Document.usage_bytes), 0))
        .outerjoin(Job, Job.id == Document.job_id)
        .where(Document.collection_id.in_(collection_ids))
        .group_by(Document.collection_id, STATUS)
    )
    counts = {
        collection_id: dict.fromkeys([*map(str, DocumentStatus), "usage_bytes"], 0)
        for collection_id in collection_ids
    }
    for collection_id, status, number, used in session.execute(query):
        counts[collection_id][status] = number
        counts[collection_id]["usage_bytes"] += int(used)
    return counts


def note_search(session: Session, collection_id: str) -> None:
    """Note that it is used, to the minute, and without waiting for a document that is being loaded."""
    session.execute(USED, {"id": collection_id})


def touch(session: Session, collection: Collection) -> None:
    """Note that it is used now."""
    collection.last_active_at = func.clock_timestamp()
    session.flush()
