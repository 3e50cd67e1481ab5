"""The server that embeds text: which model it has, and vectors. A step asks it several requests at once,
and the API for the few texts of a search.

llama-server does best on two requests of 16 chunks at a time. `worker.steps.local_embedder` is the other way
to embed documents.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import httpx

from db.errors import InvalidInput, Unavailable
from serving.openai_compatible import message_of

MODEL = "default"
TIMEOUT = httpx.Timeout(connect=5, read=300, write=60, pool=None)
BATCH_TOKENS = 3500
REQUESTS_AT_ONCE = 2
QUERY_SECONDS = 60
# What llama-server says with status 500, though it is the text that has to change.
TOO_LONG = "too large to process"
BETWEEN = 1  # a token of the model `default` that no text has: [unused0]
IDENTIFYING = ("n_params", "n_embd", "n_vocab", "size", "ftype")

HALF_PRECISION_MOST = 65504  # the largest number of a halfvec, as which vectors are kept

Vectors = list[bytes]  # of float32, little-endian
Item = TypeVar("Item")


@dataclass(frozen=True)
class EmbeddingModel:
    """Whose vectors can be compared: those of the same name and revision."""

    name: str
    revision: str


def model_of(listing: dict[str, Any]) -> EmbeddingModel:
    """The model in a server's `/v1/models`: its id, and a digest of what is told of its weights."""
    rows = listing.get("data") or [{}]
    row = next((row for row in rows if row.get("id") == MODEL), rows[0])
    told = {name: row["meta"][name] for name in IDENTIFYING if name in (row.get("meta") or {})}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    return EmbeddingModel(str(row.get("id") or MODEL), digest if told else "")


class EmbeddingServer:
    """Anything that answers /v1/embeddings, asked by a step. Threads may call it at once: their requests
    take turns, `REQUESTS_AT_ONCE` at a time and in the order of the calls."""

    def __init__(self, url: str, *, api_key: str = "") -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # To read the certificates that nobody will show takes 0.1 s.
        secured = url.startswith("https:")
        self._client = httpx.Client(
            base_url=url, timeout=TIMEOUT, headers=headers, trust_env=False, verify=secured
        )
        self._executor = ThreadPoolExecutor(REQUESTS_AT_ONCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)
        self._client.close()

    def model(self) -> EmbeddingModel:
        """Which model it has.

        Raises:
            Unavailable: it does not answer.
        """
        return model_of(self._request("GET", "/v1/models"))

    def embed(
        self, texts: Sequence[str], tokens: Sequence[int], progress: Callable[[int], None] = lambda done: None
    ) -> Vectors:
        """Embed texts, in batches of about as many tokens.

        Args:
            tokens: how many each text has.
            progress: told how many texts are done.
        Raises:
            Unavailable: it does not answer, or not with a vector for each text.
            InvalidInput: it refuses a text.
        """
        vectors: Vectors = []
        for batch in self._executor.map(self._embed, batches(texts, tokens)):
            vectors += batch
            progress(len(vectors))
        return vectors

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts as a llama-server with the model `default` reads them, less the special ones.

        Raises:
            Unavailable: it does not answer, or is no such server.
        """
        content = [part for text in texts for part in (text, BETWEEN)]
        try:
            answer = self._request("POST", "/tokenize", json={"content": content, "add_special": False})
        except InvalidInput as error:
            raise Unavailable(error.message, code="embedding_server_unavailable") from error
        found: list[list[int]] = [[]]
        with _answering():
            for token in answer["tokens"]:
                if token == BETWEEN:
                    found.append([])
                else:
                    found[-1].append(int(token))
        if len(found) != len(texts) + 1:
            raise Unavailable(
                f"The embedding server gave the tokens of {len(found) - 1} texts for {len(texts)}.",
                code="embedding_server_broken",
            )
        return found[:-1]

    def _embed(self, texts: Sequence[str]) -> Vectors:
        return _vectors(self._request("POST", "/v1/embeddings", json=_body(texts)), len(texts))

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        with _answering():
            return _read(self._client.request(method, path, **options))


async def embed_queries(
    client: httpx.AsyncClient, url: str, texts: Sequence[str], *, api_key: str = ""
) -> tuple[EmbeddingModel, Vectors]:
    """Embed texts in one request, and ask at once which model does it.

    Raises:
        Unavailable: the server does not answer, or not with a vector for each text.
        InvalidInput: it refuses a text.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    async def ask(method: str, path: str, **options: Any) -> dict[str, Any]:
        with _answering():
            return _read(
                await client.request(
                    method, f"{url}{path}", headers=headers, timeout=QUERY_SECONDS, **options
                )
            )

    answer, listing = await asyncio.gather(
        ask("POST", "/v1/embeddings", json=_body(texts)), ask("GET", "/v1/models")
    )
    with _answering():
        model = model_of(listing)
    return model, _vectors(answer, len(texts))


def _body(texts: Sequence[str]) -> dict[str, Any]:
    return {"model": MODEL, "input": list(texts), "encoding_format": "base64"}


def _vectors(answer: dict[str, Any], number: int) -> Vectors:
    with _answering():
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = [_packed(row["embedding"]) for row in rows]
    if len(vectors) != number:
        raise Unavailable(
            f"The embedding server gave {len(vectors)} vectors for {number} texts.",
            code="embedding_server_broken",
        )
    if not all(map(_can_be_kept, vectors)):
        raise Unavailable(
            "The embedding server gave a vector that is none: empty, or with numbers that are none or beyond "
            f"{HALF_PRECISION_MOST}.",
            code="embedding_server_broken",
        )
    return vectors


def _packed(embedding: str | list[float]) -> bytes:
    """Not every server heeds `encoding_format`."""
    if isinstance(embedding, str):
        return base64.b64decode(embedding)
    return struct.pack(f"<{len(embedding)}f", *embedding)


def _can_be_kept(vector: bytes) -> bool:
    if len(vector) % 4:
        return False
    values = struct.unpack(f"<{len(vector) // 4}f", vector)
    return bool(values) and all(-HALF_PRECISION_MOST <= value <= HALF_PRECISION_MOST for value in values)


def _read(response: httpx.Response) -> dict[str, Any]:
    if not response.is_error:
        answer: dict[str, Any] = response.json()
        return answer
    status = response.status_code
    said = message_of(response.content, status)[:300]
    if status in (400, 413, 422) or TOO_LONG in said:
        raise InvalidInput(f"The embedding server refuses a text: {said}")
    raise Unavailable(f"The embedding server answers {status}: {said}", code="embedding_server_unavailable")


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Whatever else comes of asking it means that it does not answer, or that it is something else."""
    try:
        yield
    except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise Unavailable(
            f"The embedding server does not answer: {error!r}.", code="embedding_server_unavailable"
        ) from error


def batches(
    texts: Sequence[Item], tokens: Sequence[int], *, most: int = BATCH_TOKENS
) -> Iterator[Sequence[Item]]:
    """Runs of texts that have at most `most` tokens together, or of one that has more."""
    start = total = 0
    for position, number in enumerate(tokens):
        if total + number > most and position > start:
            yield texts[start:position]
            start, total = position, 0
        total += number
    if start < len(texts):
        yield texts[start:]
