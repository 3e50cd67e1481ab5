"""From files to a collection that can be searched: an ingest of a real stack against the peer.

Both ask the same llama-server. How fast that is by itself, with the same texts, is measured beside them.
"""

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil

from bench.document_files import Manual
from bench.document_peer import DocumentPeer
from bench.document_reading import LatheReading, chunking
from bench.spent import Spent, Stopwatch, tree
from bench.stack import Stack, free_port
from db.settings import Settings, load_settings
from deploy.local.postgres import child_argv
from retrieval.headings import under_heading
from retrieval.tokens import EmbeddingTokenizer
from serving import llama_cpp
from serving.embedding_model import ensure_embedding_model
from serving.embeddings import EmbeddingServer

JOB_SECONDS = 900
START_SECONDS = 60
# Texts a request, and requests at once: the server by itself is as fast as the best of them lets it be.
BATCHINGS = ((8, 4), (16, 2))


def embedding_server(stack: Stack) -> tuple[str, psutil.Process]:
    """Start a llama-server as `lathe up` does; return its address and its process."""
    given = load_settings()
    tools = llama_cpp.require_tools(given)
    settings = Settings(embedding_port=free_port(), cache_dir=given.cache_dir)
    argv = llama_cpp.embedding_server_argv(tools, settings, ensure_embedding_model(tools, given))
    server = stack.start("embeddings", child_argv(argv, death_signal="SIGTERM"), {})
    url = f"http://127.0.0.1:{settings.embedding_port}"
    _wait(url, "/health", lambda: server.alive)
    assert server.pid is not None
    return url, psutil.Process(server.pid)


def _wait(url: str, path: str, alive: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and alive():
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + path, trust_env=False, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url}{path} does not answer")


class LatheStack:
    """An API and a worker that embed by the given server."""

    def __init__(self, stack: Stack, embeddings: str, embedder: psutil.Process) -> None:
        more = {"LATHE_EMBEDDING_SERVER_URL": embeddings}
        port, api, environment = stack.lathe("ingesting", more=more)
        worker = stack.python("worker", "worker", environment)
        pids = (api.pid, worker.pid, stack.postgres.pid)
        self._roots = [psutil.Process(pid) for pid in pids if pid is not None] + [embedder]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        _wait(f"http://127.0.0.1:{port}", "/readyz")

    def processes(self) -> list[psutil.Process]:
        return tree(self._roots)

    def ingest(self, manuals: Sequence[Manual], name: str) -> None:
        """Upload the files, and wait until all can be searched."""
        store = self._post("/v1/vector_stores", json={"name": name})["id"]
        ids = []
        for manual in manuals:
            with manual.path.open("rb") as file:
                answer = self._post(
                    "/v1/files", files={"file": (f"{name}-{manual.path.name}", file)},
                    data={"purpose": "assistants"},
                )  # fmt: skip
            ids.append(answer["id"])
        batch = self._post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": ids})
        deadline = time.monotonic() + JOB_SECONDS
        while batch["status"] == "in_progress":
            assert time.monotonic() < deadline, batch
            time.sleep(0.05)
            path = f"/v1/vector_stores/{store}/file_batches/{batch['id']}"
            batch = self._client.get(path).raise_for_status().json()
        assert batch["file_counts"]["completed"] == len(manuals), batch

    def _post(self, path: str, **content: Any) -> dict[str, Any]:
        response = self._client.post(path, **content)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer


def bare_rate(url: str, texts: Sequence[str], each: int, at_once: int) -> float:
    """Texts a second of the server, asked for nothing else."""
    batches = [texts[start : start + each] for start in range(0, len(texts), each)]
    with httpx.Client(base_url=url, trust_env=False, timeout=JOB_SECONDS) as client:

        def ask(batch: Sequence[str]) -> None:
            body = {"model": "default", "input": list(batch), "encoding_format": "base64"}
            client.post("/v1/embeddings", json=body).raise_for_status()

        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as executor:
            list(executor.map(ask, batches))
        return len(texts) / (time.perf_counter() - began)


def compare(
    stack: Stack,
    manuals: Sequence[Manual],
    reading: LatheReading,
    peer: DocumentPeer,
    *,
    rounds: int,
    dice: random.Random,
) -> dict[str, Any]:
    """Make the files searchable by both and embed their chunks by the server alone, in an order of chance."""
    url, embedder = embedding_server(stack)
    lathe = LatheStack(stack, url, embedder)
    tokenizer = EmbeddingTokenizer()
    # As they are embedded by us. The peer embeds its chunks as they are: some 3 % fewer tokens.
    texts, tokens = zip(
        *(
            under_heading(chunk, manual.path.name, tokenizer)
            for manual in manuals
            for chunk in reading.cut(manual)
        ),
        strict=True,
    )
    bare_rate(url, texts[:16], 8, 2)
    lathe.ingest(manuals[:1], "warm")
    peer.ask("ingest", path=str(manuals[0].path), collection="warm", embedder=url,
             chunking=chunking(by_tokens=True))  # fmt: skip
    runs: dict[str, list[Spent]] = {"lathe": [], "peer": []}
    bare: dict[str, list[float]] = {f"{each} x {at_once}": [] for each, at_once in BATCHINGS}
    peer_chunks: list[int] = []

    def ours(turn: int) -> None:
        with Stopwatch(lathe.processes) as watch:
            lathe.ingest(manuals, f"turn-{turn}")
        runs["lathe"].append(watch.spent)

    def theirs(turn: int) -> None:
        with Stopwatch(lambda: tree([peer.process, embedder])) as watch:
            peer_chunks.append(sum(_peer_ingests(peer, manuals, url, f"turn-{turn}")))
        runs["peer"].append(watch.spent)

    def alone(turn: int) -> None:
        for each, at_once in BATCHINGS:
            bare[f"{each} x {at_once}"].append(bare_rate(url, texts, each, at_once))
        bare.setdefault("lathe's batches", []).append(_lathe_rate(url, texts, tokens))

    for turn in range(rounds):
        for work in dice.sample([ours, theirs, alone], 3):
            work(turn)
    best = max(statistics.median(rates) for rates in bare.values())
    seconds = {side: statistics.median(run.wall for run in done) for side, done in runs.items()}
    return {
        "files": [manual.path.name for manual in manuals],
        "chunks": {"lathe": len(texts), "peer": peer_chunks[0]},
        "seconds": {side: [round(run.wall, 2) for run in done] for side, done in runs.items()},
        "cpu_seconds": {
            side: round(statistics.median(run.cpu for run in done), 2) for side, done in runs.items()
        },
        "bare_chunks_per_second": {name: [round(rate, 1) for rate in rates] for name, rates in bare.items()},
        "chunks_per_second": round(len(texts) / seconds["lathe"], 1),
        "ratio": round(seconds["peer"] / seconds["lathe"], 2),
        "of_embedder": round(len(texts) / seconds["lathe"] / best, 3),
    }


def _peer_ingests(peer: DocumentPeer, manuals: Sequence[Manual], url: str, name: str) -> Iterator[int]:
    for manual in manuals:
        answer = peer.ask("ingest", path=str(manual.path), collection=name, embedder=url,
                          chunking=chunking(by_tokens=True))  # fmt: skip
        yield answer["chunks"]


def _lathe_rate(url: str, texts: Sequence[str], tokens: Sequence[int]) -> float:
    with EmbeddingServer(url) as server:
        began = time.perf_counter()
        server.embed(texts, tokens)
        return len(texts) / (time.perf_counter() - began)
