"""Find passages in collections: the one way from a question to what stands about it.

The question is put in other words and embedded while no connection is held, then compared with all
passages, and the best of those are reranked.
"""

import struct
from collections.abc import Awaitable, Sequence
from dataclasses import replace

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from api.retrieval.reranking import PASSAGES_MAX, reranked
from api.retrieval.rewriting import rewrite
from api.unit_of_work import Services, Unit
from db.errors import Conflict, InvalidInput, Unavailable
from db.models import Collection, Document
from db.queries.collections import get_collection, note_search, refuse_expired
from db.queries.documents import count_by_status
from db.states import DocumentStatus
from retrieval.diversity import diversify
from retrieval.search import Found, Query, Ranking, search
from retrieval.variants import LEAST_LIKENESS, like_the_question
from serving.embeddings import EmbeddingModel, embed_queries


async def find(
    services: Services,
    collection_ids: Sequence[str],
    texts: Sequence[str],
    *,
    limit: int,
    where: ColumnElement[bool] | None = None,
    ranking: Ranking = Ranking(),
    rewrite_with: str | None = None,
    rerank: bool | None = None,
) -> Found:
    """Find the passages that fit best to any of the texts. No session is held while a server is asked.

    Args:
        collection_ids: of the caller's project; they are searched as if they were one.
        where: on `Document`, of the documents that are searched.
        rewrite_with: a model that puts the texts in other words, which are searched for, too.
        rerank: whether a cross-encoder orders the best; None: if there is a server for it, and it answers.
    Returns:
        hits that can be read without a session, and how they were found.
    Raises:
        NotFound: there is no such collection, or no such model.
        Conflict: a collection has expired; or their vectors come from several models, or from another one
            than the embedding server has.
        InvalidInput: the embedding server refuses a text; `rerank` is demanded, and there is no server.
        Unavailable: the embedding server does not answer, or the rerank server that is demanded.
    """
    reranks = rerank is not False and services.settings.rerank_url is not None
    if rerank and not reranks:
        raise InvalidInput(
            "There is no rerank server: name one by LATHE_RERANK_SERVER_URL, or leave the ranker out.",
            param="ranker",
            code="no_rerank_server",
        )
    ids = list(dict.fromkeys(collection_ids))
    model = await services.run_reading(lambda unit: _model_of(_collections(unit, ids)))
    found = Found(queries=list(texts))
    queries: list[Query] = []
    if model is not None:
        with found.timed("embedding"):
            queries = await _embedded(services, texts, model)
        # Only what can be searched for is worth a chat model's time.
        if rewrite_with is not None:
            queries += await _rewritten(services, found, queries, model, rewrite_with)

    def compare(ranking: Ranking, limit: int) -> Awaitable[None]:
        return services.run_reading(
            lambda unit: _compare(unit, found, ids, queries, limit=limit, where=where, ranking=ranking)
        )

    if not reranks:
        await compare(ranking, limit)
        return found
    await compare(replace(ranking, diversity=0.0), max(limit, PASSAGES_MAX))
    if found.hits:
        await _rerank(services, found, texts, demanded=rerank is True)
        await services.run_reading(lambda unit: _cut(unit.session, found, ranking, limit))
    return found


def _compare(
    unit: Unit,
    found: Found,
    ids: Sequence[str],
    queries: Sequence[Query],
    *,
    limit: int,
    where: ColumnElement[bool] | None,
    ranking: Ranking,
) -> None:
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
    unread = (Document.collection_id.in_(ids), Document.status == DocumentStatus.IN_PROGRESS)
    found.indexing = count_by_status(unit.session, *unread)[DocumentStatus.IN_PROGRESS]
    for collection in collections:
        note_search(unit.session, collection.id)


async def _rewritten(
    services: Services, found: Found, asked: Sequence[Query], model: EmbeddingModel, rewrite_with: str
) -> list[Query]:
    """The question in other words, too, as far as they mean the same; none, if no model helps, or the
    embedding server refuses them."""
    try:
        with found.timed("rewrite"):
            variants = await rewrite(services, found.queries, rewrite_with)
    except Unavailable as error:
        found.notices.append(f"The question was searched for as it is. {error.message}")
        return []
    try:
        with found.timed("embedding"):
            queries = await _embedded(services, variants, model)
    except InvalidInput as error:
        found.notices.append(
            f"The question was searched for as it is, and not in other words. {error.message}"
        )
        return []
    kept, dropped = like_the_question(asked, queries)
    if dropped:
        found.used.append("rewrites_dropped")
        cosines = ", ".join(f"{cosine:.2f}" for cosine in dropped)
        found.notices.append(
            f"{len(dropped)} of {len(variants)} rewritings were not searched for: they do not mean what was "
            f"asked (cosine {cosines}; at least {LEAST_LIKENESS})."
        )
    found.queries += [query.text for query in kept]
    return kept


async def _rerank(services: Services, found: Found, texts: Sequence[str], *, demanded: bool) -> None:
    try:
        with found.timed("rerank"):
            found.hits = await reranked(services, texts, found.hits)
    except Unavailable as error:
        if demanded:
            raise
        found.notices.append(f"The passages are in the order before reranking. {error.message}")


def _cut(session: Session, found: Found, ranking: Ranking, limit: int) -> None:
    """Leave what was asked for of the hits that were reranked."""
    if ranking.diversity > 0:
        with found.timed("mmr"):
            hits = {hit.chunk.id: hit for hit in found.hits}
            relevance = [(chunk_id, hit.score) for chunk_id, hit in hits.items()]
            picked = diversify(session, relevance, limit=limit, diversity=ranking.diversity)
            found.hits = [hits[chunk_id] for chunk_id in picked]
    del found.hits[limit:]


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
    """The texts with their vectors."""
    settings = services.settings
    try:
        now, vectors = await embed_queries(
            services.client,
            settings.embedding_url,
            texts,
            api_key=settings.embedding_server_key.get_secret_value(),
        )
    except InvalidInput as error:
        raise InvalidInput(
            f"The query cannot be embedded; a shorter one may be. {error.message}", param="query"
        ) from error
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
