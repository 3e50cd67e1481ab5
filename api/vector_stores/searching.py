"""A search: the queries are embedded while no transaction is open, then compared in one."""

import asyncio
import base64
import struct
import time
from typing import Any

import httpx
from sqlalchemy.orm import Session

from api.unit_of_work import Services, Unit
from api.vector_stores.schemas import Passage, SearchOut, SearchRequest, TextContent
from db.errors import Conflict, InvalidInput, Unavailable
from db.models import Collection
from db.queries.collections import counts_of, get_collection, note_search, refuse_expired
from retrieval.filters import condition
from retrieval.search import Found, Hit, Query, Ranking, Weights
from retrieval.search import search as search_collections
from serving.embeddings import MODEL, EmbeddingModel, model_of

TIMEOUT_SECONDS = 60


async def search(services: Services, collection_id: str, request: SearchRequest) -> SearchOut:
    """Search one collection.

    Raises:
        NotFound: there is none by that id.
        Conflict: it has expired, or the embedding server has another model than its vectors come from.
        InvalidInput: the filters cannot be understood.
        Unavailable: the embedding server does not answer.
    """
    if request.rewrite_query:
        raise InvalidInput(
            "rewrite_query is not supported by this version of Lathe: leave it out.",
            param="rewrite_query",
            code="not_supported",
        )
    texts = [request.query] if isinstance(request.query, str) else request.query
    where = condition(request.filters.model_dump()) if request.filters is not None else None

    def look_up(unit: Unit) -> EmbeddingModel | None:
        collection = get_collection(unit.session, collection_id, project_id=unit.project_id)
        refuse_expired(collection)
        if collection.embedding_model is None:
            return None
        return EmbeddingModel(collection.embedding_model, collection.embedding_revision or "")

    model = await services.run_in_transaction(look_up)
    started = time.monotonic()
    queries = await _embedded(services, texts, model) if model is not None else []
    embedding_seconds = time.monotonic() - started

    def find(unit: Unit) -> SearchOut:
        collection = get_collection(unit.session, collection_id, project_id=unit.project_id)
        found = Found()
        if queries:
            _check_dimensions(collection, queries)
            options = request.ranking_options
            weights = Weights()
            if options.ranker == "none":
                weights = Weights(words=0.0)
            elif options.hybrid_search is not None:
                weights = Weights(options.hybrid_search.embedding_weight, options.hybrid_search.text_weight)
            found = search_collections(
                unit.session,
                project_id=unit.project_id,
                collections=[collection],
                queries=queries,
                limit=request.max_num_results,
                where=where,
                ranking=Ranking(weights, options.score_threshold),
            )
            found.seconds["embedding"] = round(embedding_seconds, 6)
        return _answer(unit.session, collection, texts, found)

    answer = await services.run_in_transaction(find)
    await services.run_in_transaction(lambda unit: note_search(unit.session, collection_id))
    return answer


async def _embedded(services: Services, texts: list[str], model: EmbeddingModel) -> list[Query]:
    body = {"model": MODEL, "input": texts, "encoding_format": "base64"}
    answered, listed = await asyncio.gather(
        _ask(services, "POST", "/v1/embeddings", json=body), _ask(services, "GET", "/v1/models")
    )
    if (now := model_of(listed)) != model:
        raise Conflict(
            f"The collection's vectors come from {model.name} ({model.revision}), and the embedding server "
            f"now has {now.name} ({now.revision}): ingest the documents into a new collection.",
            code="embedding_model_changed",
        )
    rows = sorted(answered["data"], key=lambda row: row["index"])
    vectors = [base64.b64decode(row["embedding"]) for row in rows]
    return [
        Query(text, list(struct.unpack(f"<{len(vector) // 4}f", vector)))
        for text, vector in zip(texts, vectors, strict=True)
    ]


async def _ask(services: Services, method: str, path: str, **options: Any) -> dict[str, Any]:
    settings = services.settings
    key = settings.embedding_server_key.get_secret_value()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = await services.client.request(
            method, f"{settings.embedding_url}{path}", headers=headers, timeout=TIMEOUT_SECONDS, **options
        )
        if response.status_code == 400:
            raise InvalidInput(f"The query cannot be embedded: {response.text[:300]}", param="query")
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise Unavailable(
            f"The embedding server does not answer: {error}.", code="embedding_server_unavailable"
        ) from error
    return answer


def _check_dimensions(collection: Collection, queries: list[Query]) -> None:
    came = {len(query.vector) for query in queries}
    if came != {collection.dimensions}:
        raise Conflict(
            f"The collection's vectors have {collection.dimensions} dimensions, the query's {came.pop()}.",
            code="embedding_model_changed",
        )


def _answer(session: Session, collection: Collection, texts: list[str], found: Found) -> SearchOut:
    return SearchOut(
        search_query=texts,
        data=[_passage(hit) for hit in found.hits],
        in_progress=counts_of(session, [collection.id])[collection.id]["in_progress"],
        used=found.used,
        seconds=found.seconds,
    )


def _passage(hit: Hit) -> Passage:
    chunk, document = hit.chunk, hit.document
    labels = document.page_labels or []
    return Passage(
        file_id=document.file_id,
        filename=document.filename,
        score=round(hit.score, 6),
        similarity=round(hit.similarity, 6),
        attributes=document.attributes,
        content=[TextContent(text=chunk.text)],
        first_page=chunk.first_page,
        last_page=chunk.last_page,
        page_label=labels[chunk.first_page - 1] if labels and chunk.first_page else None,
        section=chunk.section,
        start=chunk.start_char,
        end=chunk.end_char,
    )
