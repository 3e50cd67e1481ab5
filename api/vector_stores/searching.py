"""A search, in the shape of OpenAI's vector stores."""

from api.retrieval.finding import find
from api.retrieval.rankers import reranks, weights_of
from api.retrieval.rewriting import rewriting_model
from api.unit_of_work import Services
from api.vector_stores.schemas import Passage, RankingOptions, SearchOut, SearchRequest, TextContent
from retrieval.filters import condition
from retrieval.search import Hit, Ranking, Weights


async def search(services: Services, collection_id: str, request: SearchRequest) -> SearchOut:
    """Search one collection.

    Raises:
        InvalidInput: the filters cannot be understood, or there is no model that could rewrite the query.
        NotFound, Conflict, Unavailable: as `find` says.
    """
    rewrite_with = None
    if request.rewrite_query:
        rewrite_with = await services.run_in_transaction(
            lambda unit: rewriting_model(unit, services.backends)
        )
    found = await find(
        services,
        [collection_id],
        [request.query] if isinstance(request.query, str) else request.query,
        limit=request.max_num_results,
        where=condition(request.filters.model_dump()) if request.filters is not None else None,
        ranking=_ranking(request.ranking_options),
        rewrite_with=rewrite_with,
        rerank=reranks(request.ranking_options.ranker),
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
    asked = options.hybrid_search
    weights = Weights(asked.embedding_weight, asked.text_weight) if asked is not None else Weights()
    return Ranking(
        weights_of(options.ranker, weights),
        min_similarity=options.score_threshold,
        diversity=options.diversity,
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
