"""POST /generate: one prompt as one turn of a chat, so that it meets the template that the model learnt.

Ollama is asked by its own route: its OpenAI route passes over top_k and repeat_penalty without a word.
"""

import json
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from api.chat.passing import PassedOn, pass_on
from api.chat.schemas import GenerateAnswer, GenerateParams, GenerateRequest
from api.chat.service import Backend
from api.unit_of_work import services_of
from db.errors import Unavailable

# What each backend calls the parameters.
CHAT_NAMES = {"n_predict": "max_tokens", "temp": "temperature"}
OLLAMA_NAMES = {"n_predict": "num_predict", "temp": "temperature"}
# -1 asks for what happens anyway: no limit, and a seed that is drawn.
DRAWN = {"n_predict": -1, "seed": -1}


@dataclass(frozen=True)
class Question:
    """What a backend is asked, and where."""

    url: str
    body: bytes


def conversation(request: GenerateRequest) -> list[dict[str, Any]]:
    return [{"role": "user", "content": request.prompt}]


def question(
    request: GenerateRequest,
    backend: Backend,
    messages: list[dict[str, Any]] | None = None,
    *,
    thinking: bool = True,
) -> Question:
    """Put a prompt, or the conversation that was made of it, as `backend` takes it.

    Args:
        thinking: False keeps a model that can think before it answers from doing so.
    """
    body: dict[str, Any] = {"model": backend.model, "messages": messages or conversation(request)}
    if backend.kind == "ollama":
        body |= {"stream": False, "options": _named(request.params, OLLAMA_NAMES)}
        if not thinking:
            body["think"] = False
        return Question(f"{backend.url}/api/chat", json.dumps(body).encode())
    body |= _named(request.params, CHAT_NAMES)
    if not thinking:
        body["chat_template_kwargs"] = {"enable_thinking": False}
    return Question(f"{backend.url}/v1/chat/completions", json.dumps(body).encode())


def _named(params: GenerateParams, names: dict[str, str]) -> dict[str, Any]:
    given = params.model_dump(exclude_none=True).items()
    return {names.get(name, name): value for name, value in given if DRAWN.get(name) != value}


async def ask(request: Request, asked: Question, backend: Backend, model: str) -> GenerateAnswer | Response:
    """Ask a question; what the backend says, or its error.

    Args:
        model: the name that the question was asked by.
    """
    response = await pass_on(services_of(request), request, asked.url, asked.body, api_key=backend.api_key)
    if not isinstance(response, PassedOn):
        return response  # an error
    return answer(await response.whole(), model, backend)


def answer(raw: bytes, model: str, backend: Backend) -> GenerateAnswer:
    """Read what the backend said.

    Raises:
        Unavailable: it is no answer.
    """
    try:
        said = json.loads(raw)
        return _from_ollama(said, model) if backend.kind == "ollama" else _from_chat(said, model)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Unavailable(
            "The model's server gave an answer that is none.", code="bad_backend_answer"
        ) from error


def _from_chat(said: dict[str, Any], model: str) -> GenerateAnswer:
    choice, usage = said["choices"][0], said.get("usage") or {}
    return GenerateAnswer(
        text=choice["message"]["content"] or "",
        model=model,
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
    )


def _from_ollama(said: dict[str, Any], model: str) -> GenerateAnswer:
    return GenerateAnswer(
        text=said["message"]["content"],
        model=model,
        finish_reason=said.get("done_reason"),
        prompt_tokens=said.get("prompt_eval_count"),
        completion_tokens=said.get("eval_count"),
    )
