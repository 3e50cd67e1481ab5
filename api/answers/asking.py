"""The routes that answer from documents: what is found is put before the model, and told of."""

from starlette.requests import Request
from starlette.responses import Response

from api.answers.completions import (
    annotations_of,
    answer_without_model,
    first_chunk,
    note_unknown,
    with_grounding,
)
from api.answers.schemas import FIELDS, Sources
from api.answers.service import Grounded, ground, nothing_found
from api.chat.body import Body
from api.chat.checkpoints import find_target
from api.chat.configured import sampling_of
from api.chat.generation import ask, conversation, question
from api.chat.passing import PassedOn, pass_on, unless_left
from api.chat.schemas import GenerateRequest, GroundedAnswer
from api.chat.text_stream import named_event, stream_text, text_event, whole_stream
from api.unit_of_work import services_of
from api.validation import refuse_unstorable
from serving.backends.interface import Request as Asked
from serving.backends.target import Target


async def complete(request: Request, body: Body, sources: Sources) -> Response:
    """A chat completion that rests on documents. Of the request only `messages` changes."""
    services = services_of(request)
    refuse_unstorable(body.members)
    model: str = body.members["model"]
    target = await find_target(services, model)
    asked = {name: value for name, value in body.members.items() if name not in FIELDS}
    found = await unless_left(request, lambda: ground(services, target, asked, sources, model=model))
    if found.messages is None:
        return answer_without_model(asked, found.grounding)
    changed = {"messages": found.messages}

    def make(name: str) -> Asked:
        sent = body.with_members({"model": name, **changed}, without=FIELDS)
        return Asked(name, asked | changed, sent)

    response = await pass_on(request, target, "chat", make, before=first_chunk(model, found.grounding))
    if isinstance(response, PassedOn) or response.status_code >= 400:
        return response
    whole = with_grounding(bytes(response.body), found.grounding)
    return Response(whole, response.status_code, media_type="application/json")


async def generate_from(
    request: Request, body: GenerateRequest, target: Target, model: str
) -> GroundedAnswer | Response:
    """One prompt's answer from documents."""
    found = await _found(request, body, target, model)
    grounding = found.grounding
    if found.messages is None:
        return GroundedAnswer(
            text=nothing_found(grounding),
            model=model,
            finish_reason="stop",
            prompt_tokens=0,
            completion_tokens=0,
            annotations=[],
            citations=[],
            retrieval=grounding.retrieval,
        )
    asked = question(body, found.messages, defaults=sampling_of(services_of(request), model))
    said = await ask(request, asked, target, model)
    if isinstance(said, Response):
        return said
    annotations, unknown = annotations_of(said.text, grounding.citations)
    note_unknown(grounding, unknown)
    return GroundedAnswer(
        **said.model_dump(),
        annotations=annotations,
        citations=grounding.citations,
        retrieval=grounding.retrieval,
    )


async def stream_from(request: Request, body: GenerateRequest, target: Target, model: str) -> Response:
    """The same as it comes, after the passages that it rests on."""
    found = await _found(request, body, target, model)
    before = named_event("grounding", found.grounding)
    if found.messages is None:
        return whole_stream(before, text_event(nothing_found(found.grounding)))
    defaults = sampling_of(services_of(request), model)
    asked = question(body, found.messages, stream=True, defaults=defaults)
    return await stream_text(request, target, asked, before=before)


async def _found(request: Request, body: GenerateRequest, target: Target, model: str) -> Grounded:
    services = services_of(request)
    asked = {"messages": conversation(body), "max_tokens": body.params.n_predict}
    return await unless_left(request, lambda: ground(services, target, asked, body, model=model))
