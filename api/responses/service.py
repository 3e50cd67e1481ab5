"""What happens when a response is asked for: the conversation before it is found, documents are searched, the
model is asked, and the turn is kept.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import Response

from api.answers.schemas import Grounding
from api.answers.service import Grounded, ground, nothing_found
from api.chat.checkpoints import find_target
from api.chat.passing import PassedOn, begin, error_of, unless_left
from api.quotas import admit_bytes
from api.responses.prompting import searches, shortened
from api.responses.schemas import ResponseRequest
from api.responses.storing import keep
from api.responses.views import annotations, search_call
from api.unit_of_work import Services, Unit, services_of
from db.errors import InvalidInput, LatheError, NotFound, Unavailable
from db.queries.responses import conversation_up_to
from serving.backends import interface
from serving.backends.interface import EVENT_STREAM, request_of
from serving.backends.rewriting import read_events
from serving.backends.target import Target
from serving.responses.asking import chat_body
from serving.responses.items import read_items
from serving.responses.writing import Writer, begun

log = structlog.get_logger(__name__)

JSON = dict[str, Any]
BROKEN = "The model's server gave an answer that is none."
# A search's own words for what a request calls by another name.
SAID_OF_TOOLS = ("collections", "documents", "retrieval", "query", "ranker")


@dataclass(frozen=True)
class Turn:
    """A response that is being made.

    Args:
        items: what came in with the request.
        body: the request to the chat route; None where nothing was found, and the model is not asked.
    """

    asked: ResponseRequest
    items: list[JSON]
    body: JSON | None
    writer: Writer
    grounding: Grounding | None


async def create(request: Request, asked: ResponseRequest) -> Response:
    """Answer a request, whole or as a stream.

    Raises:
        NotFound: there is no such model or collection.
        InvalidInput: an item, a tool or the turn before cannot be used; or the conversation is too long.
        Unavailable: a server does not answer.
    """
    services = services_of(request)
    target, turn = await unless_left(request, lambda: _prepare(services, asked))
    if turn.body is None:
        assert turn.grounding is not None  # noqa: S101 - for the type checker
        return await _given(services, turn, _without_model(turn.grounding))
    body = turn.body
    answer, content = await unless_left(
        request, lambda: begin(target, "chat", lambda model: request_of(model, body))
    )
    if answer.status >= 400:
        return error_of(answer, content or b"")
    if content is None:
        return _streaming(services, turn, _chunks(answer), answer)
    return await _given(services, turn, _parsed(content))


async def _prepare(services: Services, asked: ResponseRequest) -> tuple[Target, Turn]:
    items = read_items(asked.input)
    before = await services.run_in_transaction(lambda unit: _before(unit, asked, items))
    target = await find_target(services, asked.model)
    body = chat_body(asked, [*before, *items])
    notices: list[str] = []
    if asked.truncation == "auto":
        body, notices = await shortened(await target.gauge(), body, for_passages=searches(asked))
    found = await _searched(services, target, asked, body)
    response = begun(asked, notices)
    if found is None:
        return target, Turn(asked, items, body, Writer(response), None)
    response["retrieval"] = found.grounding.retrieval.model_dump()
    writer = Writer(response, partial(annotations, response, found.grounding), asked.include or ())
    asks_model = found.messages is not None or bool(body.get("tools"))
    answered = {**body, "messages": found.messages or body["messages"]} if asks_model else None
    return target, Turn(asked, items, answered, writer, found.grounding)


def _before(unit: Unit, asked: ResponseRequest, items: list[JSON]) -> list[Any]:
    """The conversation up to the turn before."""
    if asked.store is not False:
        admit_bytes(unit, len(json.dumps(items)))
    if asked.previous_response_id is None:
        return []
    return conversation_up_to(unit.session, asked.previous_response_id, project_id=unit.project_id)


async def _searched(
    services: Services, target: Target, asked: ResponseRequest, body: JSON
) -> Grounded | None:
    tool = asked.file_search
    if tool is None or not searches(asked):
        return None
    try:
        return await ground(services, target, body, tool.sources, model=asked.model)
    except (NotFound, InvalidInput) as error:
        if error.param in SAID_OF_TOOLS:
            error.param = "tools"
        raise


# --- the answer -------------------------------------------------------------------------------------------


def _without_model(grounding: Grounding) -> JSON:
    """The answer when nothing was found."""
    said = {"message": {"content": nothing_found(grounding)}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return {"choices": [said], "usage": usage}


async def _given(services: Services, turn: Turn, chunk: JSON) -> Response:
    """An answer that is whole, in the form that was asked for."""
    writer = turn.writer
    if turn.asked.stream:
        return _streaming(services, turn, _once(chunk))
    try:
        for _ in (*writer.begin(), *_search_events(turn), *writer.take(chunk), *writer.end()):
            pass
    except (LookupError, TypeError, AttributeError) as error:
        raise Unavailable(BROKEN, code="bad_backend_answer") from error
    await keep(services, turn.asked, turn.items, writer.response)
    # As ASCII: half of a surrogate pair, which a model may say, is no UTF-8.
    return Response(json.dumps(writer.last()["response"]), media_type="application/json")


def _streaming(
    services: Services, turn: Turn, chunks: AsyncIterator[JSON], answer: interface.Answer | None = None
) -> PassedOn:
    events = _sent(_told(services, turn, chunks))
    if answer is None:
        return PassedOn(interface.Answer(200, EVENT_STREAM, events))
    return PassedOn(interface.Answer(200, EVENT_STREAM, events, answer.close))


async def _once(chunk: JSON) -> AsyncIterator[JSON]:
    yield chunk


async def _told(services: Services, turn: Turn, chunks: AsyncIterator[JSON]) -> AsyncIterator[JSON]:
    """The events of a response, and its keeping before the last one."""
    writer = turn.writer
    for event in (*writer.begin(), *_search_events(turn)):
        yield event
    try:
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                for event in writer.take(chunk):
                    yield event
        for event in writer.end():
            yield event
    except (LookupError, TypeError, AttributeError):
        writer.fail(Unavailable(BROKEN))
    except LatheError as error:
        writer.fail(error)
    try:
        await keep(services, turn.asked, turn.items, writer.response)
    except SQLAlchemyError as error:
        # Not what it says: that has the conversation in it.
        log.warning("response_not_kept", error=type(error).__name__)
        writer.fail(Unavailable("The database could not keep the response: ask again, or with store false."))
    yield writer.last()


def _search_events(turn: Turn) -> Iterator[JSON]:
    if turn.grounding is not None:
        yield from turn.writer.add_search(search_call(turn.grounding))


def _parsed(content: bytes) -> JSON:
    try:
        answer: JSON = json.loads(content)
        answer["choices"][0]["message"]
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable(BROKEN, code="bad_backend_answer") from error
    return answer


async def _chunks(answer: interface.Answer) -> AsyncIterator[JSON]:
    """A backend's chunks.

    Raises:
        Unavailable: it breaks off.
    """
    async with aclosing(read_events(answer)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            if chunk.get("error"):
                raise Unavailable(str(chunk["error"].get("message") or BROKEN))
            yield chunk


async def _sent(events: AsyncIterator[JSON]) -> AsyncIterator[bytes]:
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
