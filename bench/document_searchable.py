"""From files to a collection that can be searched: ingest jobs of a real stack against the peer.

The peer embeds as LangChain's users do, by `HuggingFaceEmbeddings`: sentence-transformers in its own process,
with the same weights. What it does with our llama-server in place of that is measured beside it, and so is
how fast each of our embedders, that server and the embed step's own, is with the same texts and nothing else
to do.
"""

import contextlib
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
from sqlalchemy import create_engine, text

from bench.document_files import Manual
from bench.document_peer import DocumentPeer
from bench.document_reading import LatheReading, chunking
from bench.spent import Spent, Stopwatch, tree
from bench.stack import Stack
from db.settings import Settings, load_settings
from db.states import ENDED_JOB
from deploy.local.postgres import child_argv
from retrieval.headings import under_heading
from retrieval.tokens import EmbeddingTokenizer
from serving import llama_cpp
from serving.embedding_model import ensure_embedding_model
from serving.embedding_weights import weights_folder
from serving.embeddings import EmbeddingServer
from serving.local_port import free_port
from worker.steps.embedding_choice import LOCAL_FROM_CHUNKS
from worker.steps.local_embedder import LocalEmbedder

JOB_SECONDS = 900
START_SECONDS = 60
# Texts a request, and requests at once: the server by itself is as fast as the best of them lets it be.
BATCHINGS = ((8, 4), (16, 2))
LOCAL = "in the step"
# Of a file alone for each round of others: it takes a second, of which a moment's noise is much.
ROUNDS_ALONE = 2
# What is told and not judged, the peer by our server, takes two minutes of a larger job.
BY_SERVER_MOST_CHUNKS = 1000
# Of our text, that the peer has to read of a file, too.
COMPARABLE = 0.9
# By so many of a job's texts.
BARE_TEXTS = 256
STEPS = text(
    "SELECT s.name, extract(epoch FROM a.started_at) AS began, extract(epoch FROM a.ended_at) AS ended, "
    "extract(epoch FROM j.created_at) AS submitted "
    "FROM attempts a JOIN steps s ON s.id = a.step_id JOIN jobs j ON j.id = s.job_id "
    "WHERE j.id = :job ORDER BY a.id"
)
EMBEDS_ITSELF = text(
    "SELECT count(*) FROM events WHERE job_id = :job AND message LIKE 'This process embeds%'"
)


def embedding_server(stack: Stack) -> tuple[int, psutil.Process]:
    """Start a llama-server as `lathe up` does; return its port and its process."""
    given = load_settings()
    tools = llama_cpp.require_tools(given)
    settings = Settings(embedding_port=free_port(), cache_dir=given.cache_dir)
    argv = llama_cpp.embedding_server_argv(tools, settings, ensure_embedding_model(tools, given))
    server = stack.start(
        "embeddings", child_argv(argv, death_signal="SIGTERM"), llama_cpp.child_environment()
    )
    _wait(f"http://127.0.0.1:{settings.embedding_port}", "/health", lambda: server.alive)
    assert server.pid is not None
    return settings.embedding_port, psutil.Process(server.pid)


def _wait(url: str, path: str, alive: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and alive():
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url + path, trust_env=False, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url}{path} does not answer")


class LatheStack:
    """An API and a worker, settings being Lathe's own but for the ports."""

    def __init__(self, stack: Stack, embedding_port: int, embedder: psutil.Process) -> None:
        more = {"LATHE_EMBEDDING_PORT": str(embedding_port)}
        port, api, environment = stack.lathe("ingesting", more=more)
        worker = stack.python("worker", "worker", environment)
        pids = (api.pid, worker.pid, stack.postgres.pid)
        self._roots = [psutil.Process(pid) for pid in pids if pid is not None] + [embedder]
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=JOB_SECONDS)
        self._database = create_engine(environment["DATABASE_URL"])
        _wait(f"http://127.0.0.1:{port}", "/readyz")

    def processes(self) -> list[psutil.Process]:
        return tree(self._roots)

    def ingest(self, manuals: Sequence[Manual], name: str) -> str:
        """Upload the files, and wait until all can be searched.

        Returns:
            the job.
        """
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
        path = f"/v1/vector_stores/{store}/file_batches/{batch['id']}"
        # Told of what happens, as a client in a hurry may be: asking again and again takes a core's time.
        with self._client.stream(
            "GET", f"/v1/jobs/{batch['id']}/events", headers={"accept": "text/event-stream"}
        ) as events:
            for line in events.iter_lines():
                if line.startswith("data:") and batch["status"] == "in_progress":
                    batch = self._client.get(path).raise_for_status().json()
                if batch["status"] != "in_progress":
                    break
        assert batch["file_counts"]["completed"] == len(manuals), batch
        return str(batch["id"])

    def wait_for_end(self, job: str) -> None:
        """Wait until the job has told all: files can be searched some moments before."""
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            if self._client.get(f"/v1/jobs/{job}").raise_for_status().json()["status"] in ENDED_JOB:
                return
            time.sleep(0.05)
        raise TimeoutError(f"{job} does not end")

    def steps(self, job: str) -> dict[str, float]:
        """How long each step of a job took, and how long none ran."""
        with self._database.connect() as connection:
            rows = connection.execute(STEPS, {"job": job}).all()
        seconds = {row.name: float(row.ended - row.began) for row in rows if row.ended is not None}
        whole = float(max(row.began for row in rows) - rows[0].submitted)
        between = whole - sum(spent for name, spent in seconds.items() if name != rows[-1].name)
        return {name: round(spent, 2) for name, spent in {**seconds, "between": between}.items()}

    def embeds_itself(self, job: str) -> bool:
        """Whether the step of a job embedded by itself, and not by the server."""
        with self._database.connect() as connection:
            return bool(connection.execute(EMBEDS_ITSELF, {"job": job}).scalar_one())

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


@dataclass(frozen=True)
class Job:
    """Files to be made searchable at once. `texts` are their chunks as embedded, `tokens` what each has."""

    manuals: list[Manual]
    texts: list[str]
    tokens: list[int]


def jobs(
    manuals: Sequence[Manual],
    reading: LatheReading,
    sizes: Sequence[int],
    *,
    single: int = 0,
    comparable: Callable[[Manual], bool] = lambda manual: True,
) -> list[Job]:
    """So many of the smallest files, each alone; then, for each number of chunks, as many of them together as
    have that.

    Args:
        comparable: whether a file alone tells anything.
    """
    tokenizer = EmbeddingTokenizer()
    cut = {}
    for manual in manuals:
        # The peer embeds its chunks as they are: some 3 % fewer tokens.
        cut[manual] = [under_heading(chunk, manual.path.name, tokenizer) for chunk in reading.cut(manual)]
    smallest_first = sorted(manuals, key=lambda manual: len(cut[manual]))
    found: list[Job] = []
    chosen: list[Manual]
    for manual in itertools.islice(filter(comparable, smallest_first), single):
        found.append(_job([manual], cut))
    for size in sizes:
        chosen = []
        while sum(len(cut[manual]) for manual in chosen) < size and len(chosen) < len(smallest_first):
            chosen.append(smallest_first[len(chosen)])
        if all(chosen != job.manuals for job in found):
            found.append(_job(chosen, cut))
    return found


def _job(manuals: list[Manual], cut: Mapping[Manual, list[tuple[str, int]]]) -> Job:
    rows = [row for manual in manuals for row in cut[manual]]
    return Job(manuals, [row[0] for row in rows], [row[1] for row in rows])


class _Sides:
    """The stack, the peer and the bare server, each with the same files."""

    def __init__(self, stack: Stack, peer: DocumentPeer, warm: Sequence[Manual]) -> None:
        port, self._embedder = embedding_server(stack)
        self._url, self._peer = f"http://127.0.0.1:{port}", peer
        self._lathe = LatheStack(stack, port, self._embedder)
        self._names = iter(range(1_000_000))
        self._server = EmbeddingServer(self._url)
        self._local = LocalEmbedder(None, threads=os.cpu_count() or 1, server=self._server)
        self.steps: list[dict[str, float]] = []
        self.embeds_itself = False  # in the last job
        # Everything is loaded, and every model has embedded something, before any clock runs. These files are
        # enough to measure who embeds faster, which is done once a month.
        # The second time, steps are forked from the processes that the first has started.
        for turn in range(2):
            self._lathe.ingest(warm, f"warm-{turn}")
        for embedder in (self._url, str(weights_folder())):
            self._ask_peer(warm[0], "warm", embedder)

    def lathe(self, job: Job) -> Spent:
        with Stopwatch(self._lathe.processes) as watch:
            done = self._lathe.ingest(job.manuals, f"turn-{next(self._names)}")
        self._lathe.wait_for_end(done)
        self.steps.append(self._lathe.steps(done))
        self.embeds_itself = self._lathe.embeds_itself(done)
        return watch.spent

    def peer(self, job: Job) -> Spent:
        return self._by_peer(job, str(weights_folder()))

    def peer_by_our_server(self, job: Job) -> Spent:
        return self._by_peer(job, self._url)

    def bare(self, job: Job, *, others: bool) -> dict[str, float]:
        """Chunks a second of the embedder of the last job alone, and of the `others`, too; of the server, by
        how it is asked."""
        texts, tokens = job.texts[:BARE_TEXTS], job.tokens[:BARE_TEXTS]
        rates = {}
        if others or not self.embeds_itself:
            for each, at_once in BATCHINGS:
                rates[f"{each} x {at_once}"] = bare_rate(self._url, texts, each, at_once)
        for name, embedder in (("lathe's batches", self._server), (LOCAL, self._local)):
            if not others and (name == LOCAL) != self.embeds_itself:
                continue
            began = time.perf_counter()
            embedder.embed(texts, tokens)
            rates[name] = len(texts) / (time.perf_counter() - began)
        return rates

    def _by_peer(self, job: Job, embedder: str) -> Spent:
        name = f"turn-{next(self._names)}"
        with Stopwatch(lambda: tree([self._peer.process, self._embedder])) as watch:
            for manual in job.manuals:
                self._ask_peer(manual, name, embedder)
        return watch.spent

    def _ask_peer(self, manual: Manual, collection: str, embedder: str) -> None:
        self._peer.ask("ingest", path=str(manual.path), collection=collection, embedder=embedder,
                       chunking=chunking(by_tokens=True))  # fmt: skip


def compare(
    stack: Stack,
    manuals: Sequence[Manual],
    reading: LatheReading,
    peer: DocumentPeer,
    *,
    sizes: Sequence[int],
    single: int,
    rounds: int,
    dice: random.Random,
) -> Iterator[dict[str, Any]]:
    """Make the files of jobs of several sizes searchable by all, in an order of chance.

    The peer asks our server once a job, unless that is a large one: that is told, not judged.

    Args:
        sizes: in chunks; the last is what is judged.
        single: how many of the smallest files are each a job of their own; what is judged is their median.
    """

    def comparable(manual: Manual) -> bool:
        """Whether the peer has about as much to embed: pypdf finds next to nothing in groff's slides."""
        theirs = sum(map(len, peer.ask("extract", path=str(manual.path))["pages"]))
        return theirs >= COMPARABLE * sum(map(len, reading.extract(manual, reading.pages(manual))))

    planned = jobs(manuals, reading, sizes, single=single, comparable=comparable)
    [warm] = jobs(manuals, reading, [LOCAL_FROM_CHUNKS])
    sides = _Sides(stack, peer, warm.manuals)
    for job in planned:
        works: dict[str, Callable[[Job], Spent]] = {"lathe": sides.lathe, "peer": sides.peer}
        runs: dict[str, list[Spent]] = {name: [] for name in works}
        bare: list[dict[str, float]] = []
        sides.steps.clear()
        for turn in range(rounds * (ROUNDS_ALONE if len(job.manuals) == 1 else 1)):
            for name in dice.sample([*works, "bare"], len(works) + 1):
                if name == "bare":
                    bare.append(sides.bare(job, others=turn == 0))
                else:
                    runs[name].append(works[name](job))
        if len(job.texts) <= BY_SERVER_MOST_CHUNKS:
            runs["peer_by_our_server"] = [sides.peer_by_our_server(job)]
        yield _told(job, runs, bare, sides)


def _told(
    job: Job,
    runs: Mapping[str, Sequence[Spent]],
    bare: Sequence[Mapping[str, float]],
    sides: _Sides,
) -> dict[str, Any]:
    seconds = {side: statistics.median(run.wall for run in done) for side, done in runs.items()}
    cpu = {side: statistics.median(run.cpu for run in done) for side, done in runs.items()}
    rates = {name: [round(each[name], 1) for each in bare if name in each] for name in bare[0]}
    embedder = LOCAL if sides.embeds_itself else "the server"
    best = max(
        statistics.median(told) for name, told in rates.items() if (name == LOCAL) == (embedder == LOCAL)
    )
    own, by_server = len(job.texts) / seconds["lathe"], seconds.get("peer_by_our_server")
    return {
        "files": [manual.path.name for manual in job.manuals],
        "chunks": len(job.texts),
        "seconds": {side: [round(run.wall, 2) for run in done] for side, done in runs.items()},
        "cpu_seconds": {side: round(spent, 2) for side, spent in cpu.items()},
        "steps_seconds": [dict(told) for told in sides.steps],
        "embedder": embedder,
        "bare_chunks_per_second": rates,
        "chunks_per_second": round(own, 1),
        "ratio": round(seconds["peer"] / seconds["lathe"], 2),
        "ratio_with_our_server": round(by_server / seconds["lathe"], 2) if by_server is not None else None,
        "of_embedder": round(own / best, 3),
    }
