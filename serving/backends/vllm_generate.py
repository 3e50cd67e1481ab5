"""vLLM's plain server, `python -m vllm.entrypoints.api_server`: POST /generate takes a text and sampling
parameters, and gives the text with its continuation. It knows neither names nor chat templates:
`options.format` says how a conversation is written as one text.

Source: vllm/entrypoints/api_server.py. A stream is a JSON of all that was said so far on each line; versions
before 0.6 end each with NUL.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx

from db.errors import InvalidInput, Unavailable
from serving.backends.configuration import SETTING, BackendConfig
from serving.backends.heeding import VLLM_GENERATE
from serving.backends.interface import JSON, Answer, Request, Usage, answer_with
from serving.backends.openai_server import OpenAIServer
from serving.backends.prompt_formats import FORMATS, PromptFormat

LINE_END = re.compile(rb"[\0\n]")
# Of OpenAI's fields and llama.cpp's, what SamplingParams calls the same; others it would refuse.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "n",
)  # fmt: skip
RENAMED = {
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}
# vLLM's own default is 16 tokens, which nobody means.
MAX_TOKENS = 512


class VllmGenerate(OpenAIServer):
    def __init__(self, config: BackendConfig, client: httpx.AsyncClient) -> None:
        super().__init__(config, client)
        name = config.options.get("format", "chatml")
        if name not in FORMATS:
            raise InvalidInput(
                f"{SETTING}: {config.name}.options.format is {name!r}; it is one of {', '.join(FORMATS)}.",
                param=SETTING,
            )
        self._format: PromptFormat = FORMATS[name]

    def adapted(self, request: Request) -> Request:
        return VLLM_GENERATE.adapted(request, self.config.name)

    async def chat(self, request: Request) -> Answer:
        prompt = self._format.render(request.body.get("messages"))
        return await self._generate(request, prompt, stops=self._format.stops, chat=True)

    async def complete(self, request: Request) -> Answer:
        prompt = request.body.get("prompt")
        if not isinstance(prompt, str):
            raise InvalidInput("prompt must be one text.", param="prompt")
        return await self._generate(request, prompt, stops=(), chat=False)

    async def embed(self, request: Request) -> Answer:
        raise self._refusal("embed")

    async def health(self) -> None:
        response = await self.client.get(f"{self.config.url}/health", timeout=2)
        response.raise_for_status()

    async def models(self) -> list[str]:
        return list(self.config.models.values())

    async def _generate(self, request: Request, prompt: str, *, stops: tuple[str, ...], chat: bool) -> Answer:
        asked = {"prompt": prompt, "stream": request.streams, **sampling_of(request.body, stops)}
        answer = await self.post("/generate", json.dumps(asked).encode())
        if answer.status >= 400:
            return answer
        usage, said = Usage(), _Said(len(prompt))
        if request.streams:
            return await _closing(await answer_with(request, said.pieces(answer), usage, chat=chat), answer)
        try:
            whole = b"".join([chunk async for chunk in answer.chunks])
        finally:
            await answer.close()
        return await answer_with(request, _once(said.text(whole)), usage, chat=chat)


async def _closing(shaped: Answer, answer: Answer) -> Answer:
    return Answer(shaped.status, shaped.content_type, shaped.chunks, answer.close)


def sampling_of(body: JSON, stops: tuple[str, ...]) -> JSON:
    """vLLM's sampling parameters for a request."""
    if body.get("n") not in (None, 1):
        raise InvalidInput("n must be 1: vLLM's /generate is asked for one answer.", param="n")
    given: dict[str, Any] = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    given |= {theirs: body[ours] for ours, theirs in RENAMED.items() if body.get(ours) is not None}
    asked = body.get("stop") or []
    stop = [*([asked] if isinstance(asked, str) else asked), *stops]
    return {"max_tokens": MAX_TOKENS, **given, **({"stop": stop} if stop else {})}


class _Said:
    """What vLLM has said of the continuation: it repeats the prompt, and all that it said before."""

    def __init__(self, prompt_characters: int) -> None:
        self._known = prompt_characters

    def text(self, raw: bytes) -> str:
        """What `raw` says beyond what is known.

        Raises:
            Unavailable: it is no answer.
        """
        try:
            whole = json.loads(raw)["text"][0]
            more: str = whole[self._known :]
        except (ValueError, LookupError, TypeError) as error:
            raise Unavailable(
                "The model's server gave an answer that is none.", code="bad_backend_answer"
            ) from error
        self._known = len(whole)
        return more

    async def pieces(self, answer: Answer) -> AsyncIterator[str]:
        held = b""
        async with aclosing(answer.chunks) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                *lines, held = LINE_END.split(held + chunk)
                for line in lines:
                    if line.strip():
                        yield self.text(line)
        if held.strip():
            yield self.text(held)


async def _once(text: str) -> AsyncIterator[str]:
    yield text
