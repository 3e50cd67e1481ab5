"""POST /generate and /agenerate: one prompt as one turn of a chat, so that it meets the template that the
model learnt."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from api.chat.passing import pass_on
from api.chat.schemas import GenerateAnswer, GenerateParams, GenerateRequest
from db.errors import Unavailable
from serving.backends import interface
from serving.backends.interface import request_of
from serving.backends.target import Target

# What the chat route calls the parameters; the others go by their own names, which llama.cpp has too.
CHAT_NAMES = {"n_predict": "max_tokens", "temp": "temperature"}
# -1 asks for what happens anyway: no limit, and a seed that is drawn.
DRAWN = {"n_predict": -1, "seed": -1}


def conversation(request: GenerateRequest) -> list[dict[str, Any]]:
    return [{"role": "user", "content": request.prompt}]


def question(
    request: GenerateRequest,
    messages: list[dict[str, Any]] | None = None,
    *,
    thinking: bool = True,
    stream: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[str], interface.Request]:
    """Put a prompt, or the conversation that was made of it, as a backend takes it that knows the model by a
    name.

    Args:
        thinking: False keeps a model that can think before it answers from doing so.
        defaults: parameters by the chat route's names, where the request says nothing.
    """
    body = {**(defaults or {}), "messages": messages or conversation(request), **_named(request.params)}
    if stream:
        body["stream"] = True
    if not thinking:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    return lambda model: request_of(model, body)


def _named(params: GenerateParams) -> dict[str, Any]:
    given = params.model_dump(exclude_none=True).items()
    said = ((name, value) for name, value in given if DRAWN.get(name) != value and value != [])
    return {CHAT_NAMES.get(name, name): value for name, value in said}


async def ask(
    request: Request, asked: Callable[[str], interface.Request], target: Target, model: str
) -> GenerateAnswer | Response:
    """Ask a question; what the backend says, or its error.

    Args:
        model: the name that the question was asked by.
    """
    response = await pass_on(request, target, "chat", asked)
    return response if response.status_code >= 400 else answer(bytes(response.body), model)


def answer(raw: bytes, model: str) -> GenerateAnswer:
    """Read what the backend said.

    Raises:
        Unavailable: it is no answer.
    """
    try:
        said = json.loads(raw)
        choice, usage = said["choices"][0], said.get("usage") or {}
        return GenerateAnswer(
            text=choice["message"]["content"] or "",
            model=model,
            finish_reason=choice.get("finish_reason"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Unavailable(
            "The model's server gave an answer that is none.", code="bad_backend_answer"
        ) from error
