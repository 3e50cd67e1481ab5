"""Ollama. Its OpenAI route passes over some fields without a word (top_k, repeat_penalty, think …): a request
that has one of these goes to Ollama's own route by the official client, and comes back in OpenAI's shape. All
others go on as they came, byte for byte.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import ollama

from db.errors import InvalidInput, NotFound, Unavailable
from serving.backends.configuration import BackendConfig
from serving.backends.heeding import OLLAMA
from serving.backends.interface import JSON, Answer, Request, Usage, answer_with, error_answer
from serving.backends.openai_server import OpenAIServer
from serving.context_window import Gauge, open_gauge
from serving.openai_compatible import understood

# What only Ollama's own route heeds, as callers of llama.cpp and of Ollama write it.
OPTIONS = ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "num_ctx", "num_gpu", "num_keep")
OWN_FIELDS = frozenset({*OPTIONS, "keep_alive", "think", "chat_template_kwargs", "options"})
# What OpenAI calls its options.
OPENAI_OPTIONS = {
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
}
# What its own route cannot do, or puts into another shape, and the values that ask for nothing.
ONLY_OPENAI: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None,),
}


class OllamaServer(OpenAIServer):
    expires = True

    def __init__(self, config: BackendConfig, client: httpx.AsyncClient) -> None:
        super().__init__(config, client)
        timeout = httpx.Timeout(connect=config.timeout.connect, read=None, write=60, pool=None)
        self._own = ollama.AsyncClient(host=config.url, timeout=timeout, trust_env=False)

    def adapted(self, request: Request) -> Request:
        return OLLAMA.adapted(request, self.config.name)

    async def chat(self, request: Request) -> Answer:
        wanted = OWN_FIELDS & request.body.keys()
        if not wanted:
            return await super().chat(request)
        body = request.body
        taken = [name for name, idle in ONLY_OPENAI.items() if name in body and body[name] not in idle]
        if taken:
            raise InvalidInput(
                f"Ollama takes no {', '.join(sorted(wanted))} with {', '.join(taken)}: leave one out.",
                param=taken[0],
            )
        try:
            return await self._ask_its_own(request)
        except ollama.ResponseError as error:
            return error_answer(error.status_code if error.status_code >= 400 else 502, error.error)

    async def _ask_its_own(self, request: Request) -> Answer:
        usage, body = Usage(), request.body
        asked: dict[str, Any] = {
            "model": request.model,
            "messages": [_message(row) for row in body.get("messages") or []],
            "options": options_of(body),
            "keep_alive": body.get("keep_alive"),
            "think": _thinks(body),
            "format": _format(body),
        }
        if request.streams:
            parts = await self._own.chat(**asked, stream=True)
            return await answer_with(request, _pieces(parts, usage), usage)
        whole = await self._own.chat(**asked)
        _note(whole, usage)
        return await answer_with(request, _once(whole.message.content or ""), usage)

    async def health(self) -> None:
        await self.ask("GET", "/api/version")

    async def models(self) -> list[str]:
        listed = await self.ask("GET", "/api/tags")
        with understood("/api/tags"):
            return [str(row["name"]).removesuffix(":latest") for row in listed["models"]]

    async def load(self, model: str, *, keep_seconds: float | None = None) -> None:
        with _named():
            await self._own.generate(model, keep_alive=keep_seconds)

    async def unload(self, model: str) -> None:
        """Ollama lets answers end before it does."""
        with contextlib.suppress(NotFound), _named():
            await self._own.generate(model, keep_alive=0)

    async def is_answering(self, model: str) -> bool:
        return False

    async def gauge(self, model: str) -> Gauge:
        if self.config.context_window is not None:
            return await super().gauge(model)
        return await open_gauge(
            self.client, kind="ollama", url=self.config.url, model=model, api_key=self.key
        )

    async def close(self) -> None:
        await self._own.close()  # type: ignore[no-untyped-call]  # theirs has no types


def options_of(body: JSON) -> JSON:
    """The options of a request, by the names that Ollama has for them."""
    given = {name: body[name] for name in OPTIONS if body.get(name) is not None}
    given |= {theirs: body[ours] for ours, theirs in OPENAI_OPTIONS.items() if body.get(ours) is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]  # a bare one is taken, and fails every answer
    own = body.get("options")
    return {**given, **(own if isinstance(own, dict) else {})}


def _thinks(body: JSON) -> Any:
    if body.get("think") is not None:
        return body["think"]
    asked = body.get("chat_template_kwargs")
    return asked.get("enable_thinking") if isinstance(asked, dict) else None


def _format(body: JSON) -> Any:
    asked = body.get("response_format")
    if not isinstance(asked, dict) or asked.get("type") == "text":
        return None
    if asked.get("type") == "json_object":
        return "json"
    try:
        return asked["json_schema"]["schema"]
    except (LookupError, TypeError):
        raise InvalidInput(
            "response_format.json_schema.schema is missing: it holds the schema.", param="response_format"
        ) from None


def _message(row: Any) -> JSON:
    """A message with its content as one text and its images beside, as Ollama wants them."""
    if not isinstance(row, dict):
        raise InvalidInput("Each of messages is an object with role and content.", param="messages")
    content = row.get("content")
    if not isinstance(content, list):
        return {"role": row.get("role", "user"), "content": content or ""}
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind == "image_url":
            images.append(_image(part))
        else:
            raise InvalidInput(f"Ollama takes no part of a message of type {kind!r}.", param="messages")
    return {"role": row.get("role", "user"), "content": "".join(texts), "images": images}


def _image(part: JSON) -> str:
    url = part.get("image_url")
    address = str(url.get("url") if isinstance(url, dict) else url)
    if not address.startswith("data:"):
        raise InvalidInput("Ollama takes images as data: URLs only.", param="messages")
    return address.partition(",")[2]


async def _pieces(parts: AsyncIterator[ollama.ChatResponse], usage: Usage) -> AsyncIterator[str]:
    """Raises:
    Unavailable: it says an error in the midst of its answer, or hangs up before the end.
    """
    ended = False
    try:
        async with contextlib.aclosing(parts) as open_parts:  # type: ignore[type-var]
            async for part in open_parts:
                _note(part, usage)
                ended = bool(part.done)
                if part.message.content:
                    yield part.message.content
    except ollama.ResponseError as error:
        raise Unavailable(f"The server that runs this model stopped in mid-answer: {error.error}") from error
    if not ended:
        raise Unavailable("The server that runs this model stopped in mid-answer.")


async def _once(text: str) -> AsyncIterator[str]:
    yield text


def _note(part: ollama.ChatResponse, usage: Usage) -> None:
    if part.done:
        usage.finish_reason = part.done_reason or "stop"
        usage.prompt, usage.completion = part.prompt_eval_count, part.eval_count


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except ollama.ResponseError as error:
        if error.status_code == 404:
            raise NotFound(f"Ollama: {error.error}", param="model", code="model_not_found") from error
        raise InvalidInput(f"Ollama: {error.error}", param="model") from error
