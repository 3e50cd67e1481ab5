"""HTTP of chat, completions and generation."""

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.chat.body import read_body
from api.chat.passing import pass_on
from api.chat.schemas import CHAT_ANSWER, CHAT_BODY, COMPLETION_BODY, GenerateAnswer, GenerateRequest
from api.chat.service import backend_of, chat_body, newest_model
from api.unit_of_work import services_of
from db.errors import Unavailable

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    summary="Chat with a model",
    response_class=Response,
    openapi_extra=CHAT_BODY,
    responses=CHAT_ANSWER,
)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions, plain or streamed, byte for byte as the model's server answers."""
    return await _ask(request, "/v1/chat/completions")


@router.post(
    "/v1/completions",
    summary="Complete a text",
    response_class=Response,
    openapi_extra=COMPLETION_BODY,
    responses=CHAT_ANSWER,
)
async def completions(request: Request) -> Response:
    """OpenAI's older completions: the prompt goes to the model as it is."""
    return await _ask(request, "/v1/completions")


async def _ask(request: Request, path: str) -> Response:
    services = services_of(request)
    body = read_body(await request.body())
    backend = await services.run_in_transaction(lambda unit: backend_of(unit, body.members["model"]))
    return await pass_on(
        services, request, backend.url + path, body.with_model(backend.model), api_key=backend.api_key
    )


@router.post("/generate", response_model=GenerateAnswer, summary="Answer one prompt")
async def generate(request: Request, body: GenerateRequest) -> GenerateAnswer | Response:
    """The short way: a prompt in, a text out. The prompt is one user's turn in the model's chat template."""
    services = services_of(request)
    name = body.model
    if name is None:
        name = await services.run_in_transaction(newest_model)
    backend = await services.run_in_transaction(lambda unit: backend_of(unit, name))
    asked = json.dumps(chat_body(body, backend.model)).encode()
    answer = await pass_on(
        services, request, f"{backend.url}/v1/chat/completions", asked, api_key=backend.api_key
    )
    if answer.status_code >= 400:
        return answer
    return _answer(await _whole(answer), name)


async def _whole(answer: Response) -> bytes:
    chunks = answer.body_iterator  # type: ignore[attr-defined]
    return b"".join([chunk async for chunk in chunks])


def _answer(raw: bytes, model: str) -> GenerateAnswer:
    try:
        answer = json.loads(raw)
        [choice] = answer["choices"]
        usage = answer.get("usage") or {}
        return GenerateAnswer(
            text=choice["message"]["content"] or "",
            model=model,
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            "The model's server gave an answer that is none.", code="bad_backend_answer"
        ) from error
