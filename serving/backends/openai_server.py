"""Servers that speak OpenAI's API: llama-server, vLLM, LM Studio, transformers, OpenAI itself.

What is asked goes on as it came, and the answer comes back byte for byte.
"""

import contextlib
from typing import Any

import httpx

from db.errors import InvalidInput, NotFound, Unavailable
from serving.backends.configuration import BackendConfig
from serving.backends.heeding import LLAMA_SERVER
from serving.backends.interface import JSON, Answer, Backend, Request
from serving.backends.rewriting import TextLogprobs, rewritten
from serving.context_window import Gauge, open_gauge
from serving.openai_compatible import MANAGE_SECONDS, authorization, error_of, understood

# `identity`, so that the bytes passed on need no knowledge of their encoding.
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
WRITE_SECONDS = 60
LOAD_SECONDS = 600  # to be asked about its template, a model is loaded


class OpenAIServer(Backend):
    """Anything with /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models."""

    def __init__(self, config: BackendConfig, client: httpx.AsyncClient) -> None:
        super().__init__(config, client)
        self.key = config.key.get_secret_value()
        # As OpenAI itself and vLLM do; of the kinds below this it is known that they do not.
        self.gives_choices = config.type == "openai"
        self._headers = {**HEADERS, **authorization(self.key)}
        # How long an answer may take is `guarding`'s business, which sees its first byte and each after it.
        self._timeout = httpx.Timeout(
            connect=config.timeout.connect, read=None, write=WRITE_SECONDS, pool=None
        ).as_dict()

    async def chat(self, request: Request) -> Answer:
        return await self.post("/v1/chat/completions", request.content)

    async def complete(self, request: Request) -> Answer:
        return await self.post("/v1/completions", request.content)

    async def embed(self, request: Request) -> Answer:
        return await self.post("/v1/embeddings", request.content)

    async def post(self, path: str, content: bytes) -> Answer:
        """Send a JSON body; return as soon as the answer's head is there."""
        request = self.client.build_request(
            "POST",
            self.config.url + path,
            content=content,
            headers=self._headers,
            extensions={"timeout": self._timeout},
        )
        response = await self.client.send(request, stream=True)
        content_type = response.headers.get("content-type", "application/json")
        again = response.headers.get("retry-after", "")
        return Answer(
            response.status_code,
            content_type,
            response.aiter_raw(),
            response.aclose,
            int(again) if again.isdecimal() else None,
        )

    async def health(self) -> None:
        await self.ask("GET", "/v1/models")

    async def models(self) -> list[str]:
        listed = await self.ask("GET", "/v1/models")
        with understood("/v1/models"):
            return [str(row["id"]) for row in listed["data"]]

    async def gauge(self, model: str) -> Gauge:
        if self.config.context_window is not None:
            return await super().gauge(model)
        return await open_gauge(
            self.client, kind="llama_server", url=self.config.url, model=model, api_key=self.key
        )

    async def ask(self, method: str, path: str, **options: Any) -> JSON:
        """Ask the server about itself, which takes no longer than seconds.

        Raises:
            Unavailable, NotFound, InvalidInput: its error.
        """
        headers = authorization(self.key)
        url, seconds = self.config.url + path, options.pop("timeout", MANAGE_SECONDS)
        response = await self.client.request(method, url, headers=headers, timeout=seconds, **options)
        if response.is_error:
            raise error_of(response, path)
        with understood(path):
            answer: JSON = response.json()
        return answer


class LlamaServer(OpenAIServer):
    """llama-server: alone, or as a router that loads and unloads models."""

    def __init__(self, config: BackendConfig, client: httpx.AsyncClient) -> None:
        super().__init__(config, client)
        self._templates: dict[str, JSON] = {}  # what the chat template of each model can do

    def adapted(self, request: Request) -> Request:
        return LLAMA_SERVER.adapted(request, self.config.name)

    async def chat(self, request: Request) -> Answer:
        body = request.body
        if body.get("tools") and body.get("tool_choice") != "none":
            await self._check_template(request, "tools", "supports_tools", "tools")
        if body.get("reasoning_effort") is not None:
            await self._check_template(
                request, "reasoning_effort", "supports_reasoning_effort", "an effort of reasoning"
            )
        return await super().chat(request)

    async def complete(self, request: Request) -> Answer:
        answer = await super().complete(request)
        return answer if request.body.get("logprobs") is None else rewritten(answer, TextLogprobs())

    async def _check_template(self, request: Request, field: str, capability: str, what: str) -> None:
        """What a template has no place for, llama-server leaves out without a word.

        Raises:
            InvalidInput: the model's template has none for this.
        """
        model = request.model
        if model not in self._templates:
            try:
                props = await self.ask("GET", "/props", params={"model": model}, timeout=LOAD_SECONDS)
            except (InvalidInput, NotFound):
                return  # no such model, which the answer will say; or a server that does not tell
            self._templates[model] = props.get("chat_template_caps") or {}
        if self._templates[model].get(capability) is False:
            raise InvalidInput(
                f"{field}: the chat template of this model has no place for {what}, so it would never see "
                "them. Leave them out, or take a model that was trained with them.",
                param=field,
                code="not_supported",
            )

    async def health(self) -> None:
        await self.ask("GET", "/health")

    async def load(self, model: str, *, keep_seconds: float | None = None) -> None:
        with contextlib.suppress(InvalidInput):  # it is loaded
            await self.ask("POST", "/models/load", json={"model": model})

    async def unload(self, model: str) -> None:
        with contextlib.suppress(InvalidInput):  # it is not loaded
            await self.ask("POST", "/models/unload", json={"model": model})

    async def is_answering(self, model: str) -> bool:
        where = {"model": model, "autoload": "false"}
        try:
            slots: Any = await self.ask("GET", "/slots", params=where)
        except httpx.TimeoutException:
            return True
        except (InvalidInput, NotFound, Unavailable):
            return await self._is_loading(model)
        with understood("/slots"):
            return any(slot["is_processing"] for slot in slots)

    async def _is_loading(self, model: str) -> bool:
        listed = await self.ask("GET", "/models")
        with understood("/models"):
            found = {row["id"]: row["status"]["value"] for row in listed["data"] if "status" in row}
        return found.get(model) == "loading"
