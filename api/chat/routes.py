"""HTTP of chat, completions and generation."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from api.answers.asking import complete, generate_from, stream_from
from api.answers.schemas import FIELDS, read_sources
from api.chat.body import Body, read_body
from api.chat.checkpoints import find_target
from api.chat.configured import default_model, sampling_of
from api.chat.generation import ask, question
from api.chat.passing import pass_on
from api.chat.schemas import (
    CHAT_ANSWER,
    CHAT_BODY,
    COMPLETION_BODY,
    TEXT_EVENTS,
    GenerateAnswer,
    GenerateRequest,
    GroundedAnswer,
)
from api.chat.text_stream import stream_text
from api.errors import BACKENDS_ERROR
from api.routing import make_router
from api.unit_of_work import services_of
from db.errors import InvalidInput
from serving.backends.guarding import Route
from serving.backends.interface import Request as Asked
from serving.backends.target import Target

router = make_router("chat")


@router.post(
    "/v1/chat/completions",
    summary="Chat with a model",
    response_class=Response,
    openapi_extra=CHAT_BODY,
    responses=CHAT_ANSWER,
)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions, plain or streamed, byte for byte as the model's server answers.

    With `collections` or `documents` the answer rests on passages that are found in them, and tells which.
    """
    body = read_body(await request.body())
    sources = read_sources(body.members)
    if sources is not None:
        return await complete(request, body, sources)
    return await _ask(request, body, "chat")


@router.post(
    "/v1/completions",
    summary="Complete a text",
    response_class=Response,
    openapi_extra=COMPLETION_BODY,
    responses=CHAT_ANSWER,
)
async def completions(request: Request) -> Response:
    """OpenAI's older completions: the prompt goes to the model as it is."""
    body = read_body(await request.body())
    for field in FIELDS:
        if body.members.get(field) is not None:
            raise InvalidInput(
                f"{field} goes with POST /v1/chat/completions and POST /generate: here nothing is searched.",
                param=field,
            )
    return await _ask(request, body, "complete")


async def _ask(request: Request, body: Body, route: Route) -> Response:
    services = services_of(request)
    target = await find_target(services, body.members["model"])
    return await pass_on(
        request, target, route, lambda model: Asked(model, body.members, body.with_model(model))
    )


@router.post(
    "/generate",
    response_model=GroundedAnswer | GenerateAnswer | str,
    summary="Answer one prompt",
    responses=BACKENDS_ERROR,
)
async def generate(request: Request, body: GenerateRequest) -> GenerateAnswer | Response:
    """The short way: a prompt in, a text out. The prompt is one user's turn in the model's chat template.

    With `collections` or `documents` the answer rests on passages that are found in them, and tells which.
    Where a lathe.yaml names the model, a request that names none is answered with the text alone, as JSON.
    """
    name, target = await _asked(request, body)
    if body.is_grounded:
        return await generate_from(request, body, target, name)
    services = services_of(request)
    asked = question(body, defaults=sampling_of(services, name))
    said = await ask(request, asked, target, name)
    if (
        body.model is None
        and services.settings.configured_model is not None
        and not isinstance(said, Response)
    ):
        return JSONResponse(said.text)
    return said


@router.post(
    "/agenerate", summary="Answer one prompt, as it comes", response_class=Response, responses=TEXT_EVENTS
)
async def agenerate(request: Request, body: GenerateRequest) -> Response:
    """The same as a stream: each event's data is a piece of the text, and the stream's end is the answer's.

    With `collections` or `documents` an event `grounding` comes first, with the passages; an error amid the
    answer is an event `error`.
    """
    name, target = await _asked(request, body)
    if body.is_grounded:
        return await stream_from(request, body, target, name)
    defaults = sampling_of(services_of(request), name)
    return await stream_text(request, target, question(body, stream=True, defaults=defaults))


async def _asked(request: Request, body: GenerateRequest) -> tuple[str, Target]:
    """The model that is asked, and who answers for it."""
    services = services_of(request)
    name = body.model
    if name is None:
        name = await services.run_in_transaction(default_model)
    return name, await find_target(services, name)
