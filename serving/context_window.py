"""How much a served model takes, and how it counts: asked of its server before a prompt is packed.

llama-server renders and counts with the model's own template and tokenizer. Other servers are asked for their
window only, and what a text comes to there is bounded: no tokenizer makes more tokens of a text than it has
bytes.
"""

import asyncio
import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import httpx

from db.errors import InvalidInput, NotFound
from serving.openai_compatible import authorization, error_of, understood, unreachable

# Ollama's own default, and what a server that does not tell is trusted with.
DEFAULT_WINDOW = 4096
# What a template writes around a message, at the most.
MESSAGE_TOKENS = 16
NUM_CTX = re.compile(r"^num_ctx\s+(\d+)", re.MULTILINE)
# The fields of a request that templates write into the prompt.
RENDERED = ("messages", "tools", "response_format")

JSON = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A request as the model gets it; `text` is None where its server cannot tell."""

    tokens: int
    text: str | None


@dataclass(frozen=True)
class Counted:
    """Args:
    tokens: of each text.
    controls: the model's own control tokens that stand in the texts, as far as its server can tell.
    """

    tokens: list[int]
    controls: frozenset[str] = frozenset()


class Gauge(Protocol):
    """Measures for one model; `window` is in tokens."""

    @property
    def window(self) -> int: ...

    async def prompt(self, body: JSON) -> Prompt:
        """Measure a request to the chat route.

        Raises:
            InvalidInput: the model's template refuses its messages.
            Unavailable: the server does not answer.
        """

    async def count(self, texts: Sequence[str]) -> Counted:
        """Measure texts, as parts of a prompt."""


async def open_gauge(client: httpx.AsyncClient, *, kind: str, url: str, model: str, api_key: str) -> Gauge:
    """Ask a server for a model's window. llama-server loads the model for that, as for the answer after it.

    Raises:
        Unavailable: it does not answer.
        NotFound, InvalidInput: it has no such model.
    """
    server = _Server(client, url, model, api_key)
    if kind == "ollama":
        return BoundGauge(await _ollama_window(server))
    try:
        props = await server.ask("GET", "/props", params={"model": model})
    except NotFound:
        return BoundGauge(await _listed_window(server))
    with understood("/props"):
        return LlamaGauge(server, int(props["default_generation_settings"]["n_ctx"]))


@dataclass(frozen=True)
class _Server:
    client: httpx.AsyncClient
    url: str
    model: str
    api_key: str

    async def ask(self, method: str, path: str, **options: Any) -> JSON:
        headers = authorization(self.api_key)
        try:
            response = await self.client.request(method, f"{self.url}{path}", headers=headers, **options)
        except httpx.HTTPError as error:
            raise unreachable() from error
        if response.is_error:
            raise error_of(response, path)
        with understood(path):
            answer: JSON = response.json()
        return answer


async def _ollama_window(server: _Server) -> int:
    shown = await server.ask("POST", "/api/show", json={"model": server.model})
    with understood("/api/show"):
        given = NUM_CTX.search(shown.get("parameters") or "")
        if given is not None:
            return int(given[1])
        trained = [
            int(value)
            for name, value in (shown.get("model_info") or {}).items()
            if name.endswith(".context_length")
        ]
        return min([DEFAULT_WINDOW, *trained])


async def _listed_window(server: _Server) -> int:
    """What the list of models says, by the names that vLLM and others have for it."""
    listed = await server.ask("GET", "/v1/models")
    with understood("/v1/models"):
        row: JSON = next((row for row in listed["data"] if row["id"] == server.model), {})
        return int(row.get("max_model_len") or row.get("context_length") or DEFAULT_WINDOW)


@dataclass(frozen=True)
class BoundGauge:
    """Counts bytes."""

    window: int

    async def prompt(self, body: JSON) -> Prompt:
        said = [body[name] for name in RENDERED if body.get(name)]
        text = json.dumps(said, ensure_ascii=False)
        return Prompt(_bytes(text) + MESSAGE_TOKENS * len(body["messages"]), None)

    async def count(self, texts: Sequence[str]) -> Counted:
        # As they stand in JSON, which `prompt` counts.
        return Counted([_bytes(json.dumps(text, ensure_ascii=False)) for text in texts])


@dataclass(frozen=True)
class LlamaGauge:
    """Asks llama-server: two requests for a prompt, and two for any number of texts."""

    server: _Server
    window: int

    async def prompt(self, body: JSON) -> Prompt:
        asked = {**body, "model": self.server.model}
        try:
            rendered = await self.server.ask("POST", "/apply-template", json=asked)
        except InvalidInput as error:
            raise InvalidInput(error.message.removeprefix("/apply-template: "), param="messages") from error
        with understood("/apply-template"):
            text = str(rendered["prompt"])
        return Prompt(len(await self._tokens(text, specials=True, whole=True)), text)

    async def count(self, texts: Sequence[str]) -> Counted:
        joined = "\n".join(texts)
        plain, parsed = await asyncio.gather(
            self._tokens(joined, specials=False), self._tokens(joined, specials=True)
        )
        with understood("/tokenize"):
            known = {token["id"] for token in plain}
            special = {token["piece"] for token in parsed if token["id"] not in known and _is_text(token)}
            return Counted(_shares(texts, plain), frozenset(special))

    async def _tokens(self, text: str, *, specials: bool, whole: bool = False) -> list[JSON]:
        body = {
            "model": self.server.model, "content": text, "add_special": whole, "parse_special": specials,
            "with_pieces": not whole,
        }  # fmt: skip
        answer = await self.server.ask("POST", "/tokenize", json=body)
        with understood("/tokenize"):
            tokens: list[JSON] = answer["tokens"]
        return tokens


def _is_text(token: JSON) -> bool:
    """Pieces that are no whole characters come as lists of bytes."""
    return isinstance(token["piece"], str) and len(token["piece"]) > 1


def _shares(texts: Sequence[str], tokens: Sequence[JSON]) -> list[int]:
    """How many of the tokens of the joined texts begin in each of them, and in the line end after it."""
    pieces = [_bytes(piece) if isinstance(piece := token["piece"], str) else len(piece) for token in tokens]
    lengths = [_bytes(text) + 1 for text in texts]
    # Other than 1 where a tokenizer adds a space in front, or drops what it does not know.
    scale = sum(pieces) / (sum(lengths) - 1)
    ends = [0, *(int(end * scale) for end in accumulate(lengths))]
    begins = [0, *accumulate(pieces)][: len(pieces)]
    places = [bisect_left(begins, end) for end in ends]
    return [after - before for before, after in pairwise(places)]


def _bytes(text: str) -> int:
    return len(text.encode(errors="replace"))
