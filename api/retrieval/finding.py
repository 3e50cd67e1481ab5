"""Find passages in collections: the one way from a question to what stands about it.

The question is embedded while no transaction is open, then compared with all passages in one.
"""

import struct
from collections.abc import Sequence

from sqlalchemy import ColumnElement

from api.unit_of_work import Services, Unit
from db.errors import Conflict, InvalidInput
from db.models import Collection
from db.queries.collections import counts_of, get_collection, note_search, refuse_expired
from retrieval.search import Found, Query, Ranking, search
from serving.embeddings import EmbeddingModel, embed_queries


async def find(
    services: Services,
    collection_ids: Sequence[str],
    texts: Sequence[str],
    *,
    limit: int,
    where: ColumnElement[bool] | None = None,
    ranking: Ranking = Ranking(),
) -> Found:
    """Find the passages that fit best to any of the texts. No session is held while a server is asked.

    Args:
        collection_ids: of the caller's project; they are searched as if they were one.
        where: on `Document`, of the documents that are searched.
    Returns:
        hits that can be read without a session, and how they were found.
    Raises:
        NotFound: there is no such collection.
        Conflict: one has expired; or their vectors come from several models, or from another one than
            the embedding server has.
        InvalidInput: the embedding server refuses a text.
        Unavailable: it does not answer.
    """
    ids = list(dict.fromkeys(collection_ids))
    model = await services.run_in_transaction(lambda unit: _model_of(_collections(unit, ids)))
    found = Found(queries=list(texts))
    queries: list[Query] = []
    if model is not None:
        with found.timed("embedding"):
            queries = await _embedded(services, found.queries, model)

    def look(unit: Unit) -> None:
        collections = _collections(unit, ids)
        if queries:
            _check(collections, len(queries[0].vector))
            compared = search(
                unit.session,
                project_id=unit.project_id,
                collections=collections,
                queries=queries,
                limit=limit,
                where=where,
                ranking=ranking,
            )
            found.hits = compared.hits
            found.used += compared.used
            found.seconds |= compared.seconds
        found.indexing = sum(counts["in_progress"] for counts in counts_of(unit.session, ids).values())
        for collection in collections:
            note_search(unit.session, collection.id)

    await services.run_in_transaction(look)
    return found


def _collections(unit: Unit, ids: Sequence[str]) -> list[Collection]:
    collections = [get_collection(unit.session, one, project_id=unit.project_id) for one in ids]
    for collection in collections:
        refuse_expired(collection)
    return collections


def _model_of(collections: Sequence[Collection]) -> EmbeddingModel | None:
    """Whose vectors the collections hold; None when all are still empty."""
    filled = [collection for collection in collections if collection.embedding_model is not None]
    for other in filled[1:]:
        if _own_model(other) != _own_model(filled[0]):
            raise Conflict(
                f"The vectors of {filled[0].id} come from {_named(_own_model(filled[0]))}, those of "
                f"{other.id} from {_named(_own_model(other))}, and cannot be compared: search one at a time.",
                code="embedding_models_differ",
            )
    return _own_model(filled[0]) if filled else None


def _own_model(collection: Collection) -> EmbeddingModel:
    return EmbeddingModel(collection.embedding_model or "", collection.embedding_revision or "")


def _named(model: EmbeddingModel) -> str:
    return f"{model.name} ({model.revision})" if model.revision else model.name


async def _embedded(services: Services, texts: Sequence[str], model: EmbeddingModel) -> list[Query]:
    settings = services.settings
    try:
        now, vectors = await embed_queries(
            services.client,
            settings.embedding_url,
            texts,
            api_key=settings.embedding_server_key.get_secret_value(),
        )
    except InvalidInput as error:
        raise InvalidInput(f"The query cannot be embedded. {error.message}", param="query") from error
    if now != model:
        raise Conflict(
            f"The collection's vectors come from {_named(model)}, and the embedding server now has "
            f"{_named(now)}: ingest the documents into a new collection.",
            code="embedding_model_changed",
        )
    return [
        Query(text, list(struct.unpack(f"<{len(vector) // 4}f", vector)))
        for text, vector in zip(texts, vectors, strict=True)
    ]


def _check(collections: Sequence[Collection], dimensions: int) -> None:
    """That the vectors still fit: an empty collection may have got its first document meanwhile."""
    _model_of(collections)
    for collection in collections:
        if collection.dimensions not in (dimensions, None):
            raise Conflict(
                f"The vectors of {collection.id} have {collection.dimensions} dimensions, the query's "
                f"{dimensions}: ingest the documents into a new collection.",
                code="embedding_model_changed",
            )
