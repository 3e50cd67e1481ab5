"""A search, in the shape of OpenAI's vector stores."""

from api.retrieval.finding import find
from api.unit_of_work import Services
from api.vector_stores.schemas import Passage, RankingOptions, SearchOut, SearchRequest, TextContent
from db.errors import InvalidInput
from retrieval.filters import condition
from retrieval.search import Hit, Ranking, Weights


async def search(services: Services, collection_id: str, request: SearchRequest) -> SearchOut:
    """Search one collection.

    Raises:
        InvalidInput: the filters cannot be understood.
        NotFound, Conflict, Unavailable: as `find` says.
    """
    if request.rewrite_query:
        raise InvalidInput(
            "rewrite_query is not supported by this version of Lathe: leave it out.",
            param="rewrite_query",
            code="not_supported",
        )
    found = await find(
        services,
        [collection_id],
        [request.query] if isinstance(request.query, str) else request.query,
        limit=request.max_num_results,
        where=condition(request.filters.model_dump()) if request.filters is not None else None,
        ranking=_ranking(request.ranking_options),
    )
    return SearchOut(
        search_query=found.queries,
        data=[_passage(hit) for hit in found.hits],
        in_progress=found.indexing,
        used=found.used,
        seconds=found.seconds,
        notices=found.notices,
    )


def _ranking(options: RankingOptions) -> Ranking:
    weights = Weights()
    if options.ranker == "none":
        weights = Weights(words=0.0)
    elif options.hybrid_search is not None:
        weights = Weights(options.hybrid_search.embedding_weight, options.hybrid_search.text_weight)
    return Ranking(weights, min_similarity=options.score_threshold)


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
