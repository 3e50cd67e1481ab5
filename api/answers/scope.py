"""What is searched: collections and documents of the caller's project, and of no other."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, exists, select

from api.answers.schemas import Sources
from api.unit_of_work import Unit
from db.errors import InvalidInput, NotFound
from db.models import Collection, Document
from db.queries.collections import get_collection, own_collection
from db.queries.documents import count_by_status
from db.queries.models import resolve
from db.states import DocumentStatus
from db.wording import counted
from retrieval.filters import condition


@dataclass(frozen=True)
class Scope:
    """Args:
    where: on `Document`, of the collections' documents that are searched.
    documents: how many there are, whatever their state; `indexing` of them are still being read, and
        `failed` of them could not be.
    fits: whether there is one that the filters leave.
    """

    collection_ids: list[str]
    where: ColumnElement[bool] | None
    documents: int
    indexing: int
    failed: int
    fits: bool = True

    def notices(self) -> list[str]:
        said = [] if self.documents else ["There are no documents to search."]
        total = counted(self.documents, "document")
        if self.indexing:
            verb = "is" if self.indexing == 1 else "are"
            said.append(f"{self.indexing} of {total} {verb} still being read.")
        if self.failed:
            said.append(f"{self.failed} of {total} could not be read.")
        if self.documents and not self.fits:
            said.append(f"None of {total} fits the filters.")
        return said


def scope_of(unit: Unit, sources: Sources, model: str) -> Scope:
    """Find what a request to `model` names.

    Raises:
        NotFound: the project has no such collection, or no such document in the collections.
        InvalidInput: several collections have the name; or the filters cannot be understood.
    """
    ids = [_collection_id(unit, name) for name in sources.collections or []]
    conditions: list[ColumnElement[bool]] = []
    if sources.documents is True:
        ids.append(_own_collection_id(unit, model))
    elif sources.documents is not None:
        ids = _holding(unit, sources.documents, ids)
        conditions.append(Document.file_id.in_(sources.documents))
    own = (Document.project_id == unit.project_id, Document.collection_id.in_(ids))
    counts = count_by_status(unit.session, *own, *conditions)
    filters = sources.retrieval.filters if sources.retrieval is not None else None
    fits = True
    if filters is not None:
        conditions.append(condition(filters.model_dump()))
        fits = bool(unit.session.scalar(select(exists().where(*own, *conditions))))
    return Scope(
        collection_ids=list(dict.fromkeys(ids)),
        where=and_(*conditions) if conditions else None,
        documents=sum(counts.values()),
        indexing=counts[DocumentStatus.IN_PROGRESS],
        failed=counts[DocumentStatus.FAILED],
        fits=fits,
    )


def _collection_id(unit: Unit, name: str) -> str:
    """A collection by its id or its name."""
    if name.startswith("vs-"):
        return get_collection(unit.session, name, project_id=unit.project_id, param="collections").id
    query = select(Collection.id).where(Collection.project_id == unit.project_id, Collection.name == name)
    ids = unit.session.scalars(query.limit(3)).all()
    if not ids:
        raise NotFound(f"There is no collection {name!r}.", param="collections")
    if len(ids) > 1:
        raise InvalidInput(
            f"Several collections are named {name!r}: give the id, such as {ids[0]}.", param="collections"
        )
    return ids[0]


def _own_collection_id(unit: Unit, reference: str) -> str:
    named = resolve(unit.session, unit.project_id, reference).model
    collection = own_collection(unit.session, named)
    if collection is None:
        raise NotFound(
            f"The model {named.name!r} has no documents of its own: name collections, or give it some by "
            f"`lathe ingest FILES --model {named.name}` (POST /v1/models/{named.name}/documents).",
            param="documents",
        )
    return collection.id


def _holding(unit: Unit, file_ids: Sequence[str], collection_ids: Sequence[str]) -> list[str]:
    """The collections that hold these files, of those given or of the whole project."""
    query = select(Document.collection_id, Document.file_id).where(
        Document.project_id == unit.project_id, Document.file_id.in_(file_ids)
    )
    if collection_ids:
        query = query.where(Document.collection_id.in_(collection_ids))
    rows = unit.session.execute(query.order_by(Document.collection_id)).all()
    there = {row.file_id for row in rows}
    for file_id in file_ids:
        if file_id not in there:
            where = "none of the collections that are given" if collection_ids else "no collection"
            raise NotFound(f"The file {file_id!r} is in {where}.", param="documents")
    return [row.collection_id for row in rows]
