"""Servers that speak OpenAI's API, as steps ask them: `LlamaServer`, llama-server's own routes included;
those take a `model` in router mode. How prompts of callers are passed on: `serving.backends`.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from db.errors import InvalidInput, LatheError, NotFound, Unavailable

# Reading waits for a model to load, and then for its first token.
TIMEOUT = httpx.Timeout(connect=5, read=600, write=60, pool=60)
# Of questions about the server itself, asked by who has a lease to renew.
MANAGE_SECONDS = 2
# The token that is sampled where only the probabilities are wanted: of an incomplete UTF-8 character, which
# the likeliest may well be, llama-server gives no probabilities. They are told as they were before the bias.
FORCED = 1e4
COMPLETE = [["a", FORCED]]
ENDED = ("eos", "word")  # how an answer stops that was not cut off

Messages = list[dict[str, Any]]


def make_async_client(*, keep_alive_seconds: float = 15) -> httpx.AsyncClient:
    """A client for all that is asked from an event loop; one for the process, closed at its end.

    Its connections are aiohttp's: a streamed answer takes half the CPU that it takes by httpx's own.
    """

    reuse = aiohttp.TraceConfig()
    reuse.on_connection_reuseconn.append(_note_reuse)

    def open_session() -> aiohttp.ClientSession:
        # How many ask at once is for who asks to say: 0 is no limit.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=keep_alive_seconds)
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trace_configs=[reuse]
        )

    return httpx.AsyncClient(transport=_Transport(client=open_session), timeout=TIMEOUT, trust_env=False)


_REUSED = ContextVar("reused", default=False)


async def _note_reuse(*_: object) -> None:
    _REUSED.set(True)


class _Transport(AiohttpTransport):
    """Asks once more where a connection that was kept open turns out to be closed: llama-server closes one
    after a stream without a word, and aiohttp learns of it only as it writes.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        _REUSED.set(False)
        try:
            return await super().handle_async_request(request)
        except httpx.TransportError as error:
            if _REUSED.get() and isinstance(
                error.__cause__, aiohttp.ClientOSError | aiohttp.ServerDisconnectedError
            ):
                return await super().handle_async_request(request)
            raise


# --- asking -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NextToken:
    """What a server expects next: (token id, log probability), the likeliest first."""

    candidates: list[tuple[int, float]]

    @property
    def best(self) -> int:
        return self.candidates[0][0]


@dataclass(frozen=True)
class Completion:
    """An answer; `seconds` is what making its tokens took the server, without the reading of the prompt."""

    text: str
    tokens: list[int]
    stopped_by_itself: bool
    seconds: float


@dataclass(frozen=True)
class GreedyAnswer:
    """`leads[i]` is by how many nats `tokens[i]` was likelier than the second; 0 where that is not known."""

    text: str
    tokens: list[int]
    leads: list[float]
    ended: bool


class LlamaServer:
    """A llama-server, alone or as a router.

    Args:
        url: its address, without /v1.
        model: the model that each request names, where it is a router.
    """

    def __init__(self, url: str, *, api_key: str = "", model: str | None = None) -> None:
        self._model = model
        # A router now and then closes a connection after an answer without having said so, and the next
        # request on it is lost: seen 55 times in 3,000.
        limits = httpx.Limits(max_keepalive_connections=0 if model else None)
        self._client = httpx.Client(
            base_url=url, timeout=TIMEOUT, headers=authorization(api_key), limits=limits, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    @property
    def url(self) -> str:
        return str(self._client.base_url).rstrip("/")

    def is_ready(self) -> bool:
        """Whether it has loaded its model."""
        try:
            return self._client.get("/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def model_names(self, *, reload: bool = False) -> list[str]:
        """The models it lists; `reload` lets a router look into its folder again."""
        answer = self._request("GET", "/v1/models", params={"reload": "1"} if reload else None)
        return [row["id"] for row in answer["data"]]

    def loaded_models(self) -> list[str]:
        """The models of a router that take memory now, or are about to."""
        return [name for name, status in self._statuses().items() if status != "unloaded"]

    def _statuses(self) -> dict[str, str]:
        answer = self._request("GET", "/models", timeout=MANAGE_SECONDS)
        with understood("/models"):
            # A llama-server of one model gives no status: that one cannot be unloaded.
            return {row["id"]: row["status"]["value"] for row in answer["data"] if "status" in row}

    def is_answering(self, name: str) -> bool:
        """Whether a loaded model has a request in hand. One that loads, or is slow to say, has one too."""
        where = {"model": name, "autoload": "false"}
        try:
            response = self._client.get("/slots", params=where, timeout=MANAGE_SECONDS)
            if response.is_success:
                with understood("/slots"):
                    return any(slot["is_processing"] for slot in response.json())
        except httpx.TimeoutException:
            return True
        except httpx.HTTPError as error:
            raise unreachable() from error
        return self._statuses().get(name) == "loading"

    def serves_adapter(self, name: str, path: Path) -> bool:
        """Whether a router starts this model with the adapter at `path`."""
        answer = self._request("GET", "/models", timeout=MANAGE_SECONDS)
        with understood("/models"):
            [arguments] = [row["status"]["args"] for row in answer["data"] if row["id"] == name]
            return any(
                option == "--lora" and str(path) in value for option, value in itertools.pairwise(arguments)
            )

    def unload(self, name: str) -> None:
        """Let a router end the process of a model; what that process is answering is cut off."""
        # One that is not loaded is refused with 400: then there is nothing to unload.
        with contextlib.suppress(InvalidInput, NotFound):
            self._request("POST", "/models/unload", json={"model": name}, timeout=MANAGE_SECONDS)

    def load(self, name: str) -> None:
        """Let a router begin to load a model."""
        self._request("POST", "/models/load", json={"model": name}, timeout=MANAGE_SECONDS)

    def forget(self, name: str) -> None:
        """Let a router unload a model whose file is gone, and take it off its list."""
        self.unload(name)
        self._request("GET", "/v1/models", params={"reload": "1"}, timeout=30)

    def apply_template(self, messages: Messages, *, tools: list[dict[str, Any]] | None = None) -> str:
        """Render a conversation, the generation prompt included."""
        body = {"messages": messages, **({"tools": tools} if tools else {})}
        return str(self._post("/apply-template", body)["prompt"])

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, as the chat route makes them: with the BOS that the model wants."""
        body = {"content": text, "add_special": True, "parse_special": True}
        return [int(token) for token in self._post("/tokenize", body)["tokens"]]

    def next_token(self, prompt: list[int], *, top: int) -> NextToken:
        """The `top` likeliest next tokens, with log probabilities over the whole vocabulary."""
        body = {
            "prompt": prompt, "n_predict": 1, "n_probs": top, "temperature": 0,
            "post_sampling_probs": False, "cache_prompt": True, "logit_bias": COMPLETE,
        }  # fmt: skip
        answer = self._post("/completion", body)
        with understood("/completion"):
            [first] = answer["completion_probabilities"]
            rows = [(int(row["id"]), float(row["logprob"])) for row in first["top_logprobs"]]
        return NextToken(sorted(rows, key=lambda row: -row[1]))

    def log_probability(self, prompt: list[int], token: int, *, top: int) -> float | None:
        """Of `token` as the next one, over the whole vocabulary.

        The token is made to be sampled, for the sampled one is told wherever it ranks. Of one that is no
        whole character nothing is told: that one is looked for among the `top` likeliest.

        Returns:
            None: it is not among them.
        """
        body = {
            "prompt": prompt, "n_predict": 1, "n_probs": 1, "temperature": 0, "post_sampling_probs": False,
            "cache_prompt": True, "logit_bias": [[token, FORCED]],
        }  # fmt: skip
        answer = self._post("/completion", body)
        with understood("/completion"):
            for row in answer.get("completion_probabilities") or []:
                if int(row["id"]) == token:
                    return float(row["logprob"])
        return dict(self.next_token(prompt, top=top).candidates).get(token)

    def complete(self, prompt: list[int], *, max_tokens: int) -> Completion:
        """Answer greedily."""
        body = {"prompt": prompt, "n_predict": max_tokens, "temperature": 0, "return_tokens": True}
        answer = self._post("/completion", body)
        with understood("/completion"):
            seconds = float(answer["timings"]["predicted_ms"]) / 1000
            return Completion(answer["content"], answer["tokens"], answer["stop_type"] in ENDED, seconds)

    def greedy(self, prompt: list[int], *, max_tokens: int) -> GreedyAnswer:
        """Answer greedily, from an empty cache, with how far ahead of the second each token was."""
        body = {
            "prompt": prompt, "n_predict": max_tokens, "temperature": 0, "return_tokens": True,
            "cache_prompt": False, "n_probs": 2, "post_sampling_probs": False,
        }  # fmt: skip
        answer = self._post("/completion", body)
        with understood("/completion"):
            tokens = [int(token) for token in answer["tokens"]]
            told = iter(answer.get("completion_probabilities") or [])
            leads: list[float] = []
            row = next(told, None)
            for token in tokens:
                # Of an incomplete UTF-8 character no probabilities come: how far ahead it was is not known.
                is_told = row is not None and int(row["id"]) == token
                leads.append(_lead(row["top_logprobs"]) if row is not None and is_told else 0.0)
                row = next(told, None) if is_told else row
            return GreedyAnswer(str(answer["content"]), tokens, leads, answer["stop_type"] in ENDED)

    def ends_with(self, prompt: list[int], token: int) -> bool:
        """Whether an answer is at its end once `token` comes; the model is made to choose it."""
        body = {"prompt": prompt, "n_predict": 2, "temperature": 0, "logit_bias": [[token, FORCED]]}
        return self._post("/completion", body)["stop_type"] in ENDED

    def prompt_tokens(self, messages: Messages) -> int:
        """How many tokens OpenAI's route reads before it answers."""
        answer = self.chat(messages, max_tokens=1)
        with understood("/v1/chat/completions"):
            return int(answer["usage"]["prompt_tokens"])

    def chat(self, messages: Messages, *, max_tokens: int) -> dict[str, Any]:
        """Ask through OpenAI's route, greedily; the answer as it comes."""
        body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0}
        return self._post("/v1/chat/completions", body)

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request("POST", path, json={**body, "model": self._model} if self._model else body)

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise unreachable() from error
        if response.is_error:
            raise error_of(response, path)
        with understood(path):
            answer: dict[str, Any] = response.json()
        return answer


def _lead(candidates: list[dict[str, Any]]) -> float:
    first, second = sorted((float(row["logprob"]) for row in candidates), reverse=True)[:2]
    return first - second


def authorization(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def unreachable() -> Unavailable:
    return Unavailable("The server that runs this model does not answer.", code="model_server_unavailable")


@contextlib.contextmanager
def understood(path: str) -> Iterator[None]:
    """Whatever else may listen at that address, and answer with 200."""
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        message = f"{path}: the server does not answer as a llama-server does."
        raise Unavailable(message, code="model_server_unavailable") from error


def message_of(body: bytes, status: int) -> str:
    return read_error(body, status)[0]


def read_error(body: bytes, status: int) -> tuple[str, str | None, str]:
    """What a server says is wrong, the field, and the code: OpenAI's shape, llama-server's, Ollama's, or
    plain text.
    """
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = body.decode(errors="replace").strip()[:500]
    if isinstance(found, dict):
        found = found.get("error", found.get("message", found.get("detail", found)))
    detail = found if isinstance(found, dict) else {"message": found}
    message = detail.get("message") or f"The model's server answered with status {status}."
    param, code = detail.get("param"), detail.get("code")
    # llama-server gives the status once more as its code, and the real code as type.
    name = code if isinstance(code, str) else detail.get("type")
    return str(message), param if isinstance(param, str) else None, str(name or "backend_error")


def error_of(response: httpx.Response, path: str) -> LatheError:
    message = f"{path}: {message_of(response.content, response.status_code)}"
    if response.status_code in (401, 403):
        return Unavailable(f"The model's server refuses our key. {message}")
    if response.status_code == 404:
        return NotFound(message)
    if response.status_code < 500:
        return InvalidInput(message)
    return Unavailable(message)
