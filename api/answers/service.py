"""From a request that names documents to the request that the model's server gets, and what it rests on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from api.answers.prompt import pack
from api.answers.question import question_of
from api.answers.schemas import Citation, Grounding, Report, Retrieval, Sources
from api.answers.scope import Scope, scope_of
from api.retrieval.finding import find
from api.retrieval.rankers import reranks, weights_of
from api.unit_of_work import Services, Unit
from db.errors import InvalidInput
from db.models import Document
from retrieval.packing import Passage, distinct, passage_of
from retrieval.search import Found, Ranking, Weights
from serving.backends.target import Target

# A question of this length is searched for as it is, or refused.
SHORTEST_CHARACTERS = 100
NOTHING_FOUND = "Nothing was found about this in the given documents."

JSON = dict[str, Any]


@dataclass(frozen=True)
class Grounded:
    """Args:
    messages: the conversation with its passages; None where none was found, and nobody is to be asked.
    """

    messages: list[JSON] | None
    grounding: Grounding


async def ground(services: Services, target: Target, body: JSON, sources: Sources, *, model: str) -> Grounded:
    """Find passages for a conversation's question, and pack them into it.

    No session is held while the embedding server or the model's is asked.

    Args:
        body: the request to the chat route.
        model: the name that it was asked by, which also puts the question in other words.

    Raises:
        NotFound: the project has no such collection or document.
        InvalidInput: there is no question, or no room for a passage.
        Conflict: a collection has expired, or its vectors come from another model.
        Unavailable: one of the servers does not answer.
    """
    asked = sources.retrieval or Retrieval()
    question = question_of(body.get("messages"))
    scope = await services.run_in_transaction(lambda unit: scope_of(unit, sources, model))
    found = await _find(services, scope, question, asked, model)
    passages = distinct(passage_of(hit) for hit in found.hits)
    if not passages:
        return Grounded(None, _grounding(scope, found, [], []))

    async def page_starts(passage: Passage) -> Sequence[int]:
        return await services.run_in_transaction(lambda unit: _page_starts(unit, passage.document_id))

    with found.timed("packing"):
        gauge = await target.gauge()
        packed = await pack(gauge, body, passages, page_starts)
    return Grounded(packed.messages, _grounding(scope, found, packed.passages, packed.notices))


async def _find(services: Services, scope: Scope, question: str, asked: Retrieval, model: str) -> Found:
    """Search for a question, or for as much of its end as the embedding model takes."""
    while True:
        try:
            return await find(
                services,
                scope.collection_ids,
                [question],
                limit=asked.max_passages,
                where=scope.where,
                ranking=_ranking(asked),
                rewrite_with=model if asked.rewrite_query else None,
                rerank=reranks(asked.ranker),
            )
        except InvalidInput as error:
            # How many tokens a text has, only the embedding server knows: of Korean up to three a character.
            if error.param != "query" or len(question) < SHORTEST_CHARACTERS:
                raise
            question = question[len(question) // 2 :]


def _ranking(asked: Retrieval) -> Ranking:
    hybrid = asked.hybrid_search
    weights = Weights(hybrid.embedding_weight, hybrid.text_weight) if hybrid is not None else Weights()
    return Ranking(weights_of(asked.ranker, weights), asked.min_similarity, asked.diversity)


def nothing_found(grounding: Grounding) -> str:
    """The answer that needs no model."""
    return " ".join([NOTHING_FOUND, *grounding.retrieval.notices])


def _page_starts(unit: Unit, document_id: str) -> Sequence[int]:
    query = select(Document.page_starts).where(
        Document.id == document_id, Document.project_id == unit.project_id
    )
    return unit.session.scalars(query).one_or_none() or []


def _grounding(scope: Scope, found: Found, passages: Sequence[Passage], notices: list[str]) -> Grounding:
    report = Report(
        used=found.used,
        seconds=found.seconds,
        queries=found.queries,
        found=len(found.hits),
        given=len(passages),
        indexing=scope.indexing,
        notices=[*scope.notices(), *found.notices, *notices],
    )
    return Grounding(
        citations=[_citation(number, passage) for number, passage in enumerate(passages, 1)],
        retrieval=report,
    )


def _citation(number: int, passage: Passage) -> Citation:
    return Citation(
        number=number,
        collection_id=passage.collection_id,
        file_id=passage.file_id,
        document_id=passage.document_id,
        filename=passage.filename,
        attributes=passage.attributes,
        first_page=passage.first_page,
        last_page=passage.last_page,
        page_label=passage.page_label,
        section=passage.section,
        start_char=passage.start,
        end_char=passage.end,
        score=round(passage.score, 6),
        similarity=round(passage.similarity, 6),
        text=passage.text,
    )
