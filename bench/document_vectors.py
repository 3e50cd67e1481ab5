"""Vectors loaded, indexed and asked for: Lathe's COPY, index and search against Chroma, at growing sizes.

The vectors are synthetic: clusters around random directions, of low dimension as those of real text are,
and queries drawn like them. They lie in files, so that a million needs no memory here.
"""

import contextlib
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from sqlalchemy import insert, text

import migrations
from bench.document_bare_sql import ask_bare
from bench.document_peer import DocumentPeer
from bench.document_rows import PROJECT, Rows
from bench.spent import MemoryWatch, Spent, Stopwatch, tree
from bench.stack import Stack, percentile
from db.models import Chunk as ChunkRow
from db.models import Collection, Document
from db.session import autocommitting, make_engine
from retrieval.chunking import Chunk
from retrieval.search import Query, Ranking, Weights, search
from retrieval.vector_index import IndexBuilder, IndexPolicy, memory_needed

Vectors = NDArray[np.float32]

DIMENSIONS = 384
INTRINSIC_DIMENSIONS = 32
CLUSTERS = 500
SPREAD = 0.5
WRITTEN_AT_ONCE = 50_000
# Each document has a hundredth of the vectors: a filter on one is a filter to 1 %.
DOCUMENTS = 100
LOADED_DOCUMENTS = 10  # where only loading is measured
NEAREST = 10
RECALL = 0.95
CLIENTS = (1, 4)
EF_SEARCH = (100, 200, 400, 800)  # Chroma's, from its default on until its recall suffices


class Synthetic:
    """Where vectors come from: the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = np.random.default_rng(seed)
        self._centres = self._chance.normal(size=(CLUSTERS, INTRINSIC_DIMENSIONS)).astype(np.float32)
        self._directions = self._chance.normal(size=(INTRINSIC_DIMENSIONS, DIMENSIONS)).astype(np.float32)

    def draw(self, number: int) -> Vectors:
        """Draw vectors of length 1."""
        centres = self._centres[self._chance.integers(0, CLUSTERS, number)]
        inner = centres + SPREAD * self._chance.normal(size=centres.shape).astype(np.float32)
        noise = 0.1 * self._chance.normal(size=(number, DIMENSIONS)).astype(np.float32)
        vectors = inner @ self._directions + noise
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)

    def write(self, path: Path, number: int) -> Vectors:
        """Draw vectors into a .npy file; they are read from there."""
        file = np.lib.format.open_memmap(path, "w+", np.float32, (number, DIMENSIONS))
        for start in range(0, number, WRITTEN_AT_ONCE):
            file[start : start + WRITTEN_AT_ONCE] = self.draw(min(WRITTEN_AT_ONCE, number - start))
        file.flush()
        vectors: Vectors = np.load(path, mmap_mode="r")
        return vectors


def nearest(vectors: Vectors, queries: Vectors, document: int | None) -> list[set[int]]:
    """The rows nearest to each query by cosine, found by comparing all; of one document's alone if given."""
    rows = np.arange(len(vectors)) if document is None else np.arange(document, len(vectors), DOCUMENTS)
    best = np.empty((len(queries), 0), dtype=np.float32)
    names = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(rows), WRITTEN_AT_ONCE):
        part = rows[start : start + WRITTEN_AT_ONCE]
        cosines = np.hstack([best, queries @ np.asarray(vectors[part]).T])
        candidates = np.hstack([names, np.broadcast_to(part, (len(queries), len(part)))])
        order = np.argpartition(-cosines, min(NEAREST, cosines.shape[1]) - 1, axis=1)[:, :NEAREST]
        best, names = (np.take_along_axis(table, order, axis=1) for table in (cosines, candidates))
    return [set(map(int, row)) for row in names]


def recall(found: Sequence[Sequence[int]], truth: Sequence[set[int]]) -> float:
    return statistics.mean(
        len(real.intersection(ids)) / len(real) for ids, real in zip(found, truth, strict=True)
    )


class LatheVectors:
    """A collection of a database of its own, loaded and searched by Lathe's own functions."""

    def __init__(self, stack: Stack, name: str, folder: Path, ending: contextlib.ExitStack) -> None:
        self._url = stack.database(name)
        migrations.upgrade(self._url)
        self._engine = make_engine(self._url)
        ending.callback(self._engine.dispose)
        pid = stack.postgres.pid
        assert pid is not None
        self.server = psutil.Process(pid)
        self._folder = folder
        self.rows = Rows(self._engine, self.server, DIMENSIONS)

    def processes(self) -> list[psutil.Process]:
        return tree([self.server])

    def load(self, vectors: Vectors, rows: Rows, documents: int) -> None:
        """Load vectors as the worker does, so many documents of them."""
        path = self._folder / "vectors.copy"
        for document, (chunks, part) in enumerate(_documents(vectors, documents)):
            own = (vector.tobytes() for vector in part)
            rows.load(path, f"{document}.txt", chunks, own, part=document)

    def execute_many(self, vectors: Vectors, rows: Rows, documents: int) -> None:
        """Load them by SQLAlchemy's executemany, of which psycopg2 makes INSERTs of 1,000 rows."""
        for document, (chunks, part) in enumerate(_documents(vectors, documents)):
            with rows.document(f"{document}.txt", len(chunks), part=document) as (session, owner):
                project, collection, document_id = owner
                values = [
                    {
                        "project_id": project, "collection_id": collection, "document_id": document_id,
                        "position": position, "text": chunk.text, "start_char": chunk.start,
                        "end_char": chunk.end, "tokens": chunk.tokens, "configuration": "english",
                        "embedding": vector,
                    }
                    for position, (chunk, vector) in enumerate(zip(chunks, part, strict=True))
                ]  # fmt: skip
                session.execute(insert(ChunkRow), values)

    def build(self, memory_bytes: int) -> str:
        """Build the index, if the collection is large enough for one."""
        policy, told = IndexPolicy(memory_bytes=memory_bytes), list[str]()
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            refreshed = IndexBuilder(connection, policy, told.append).refresh(self.rows.collection.id)
        return " ".join([*told, refreshed.message])

    def query(self, queries: Vectors, *, clients: int, document: int | None) -> dict[str, Any]:
        """Search for each query, each in a session of its own.

        The collection is read before, as Chroma's client has it before: what came since, a search finds all
        the same.
        """
        with self.rows.sessions() as session:
            collection = session.get_one(Collection, self.rows.collection.id)
        where = None if document is None else Document.attributes["part"].as_integer() == document
        used: set[str] = set()

        def ask(vector: list[float]) -> tuple[list[int], float]:
            began = time.perf_counter()
            with autocommitting(self.rows.sessions) as session:
                found = search(
                    session, project_id=PROJECT, collections=[collection], queries=[Query("", vector)],
                    limit=NEAREST, where=where, ranking=Ranking(Weights(words=0.0)),
                )  # fmt: skip
            used.update(found.used)
            rows = [int(hit.chunk.text.rpartition(" ")[2]) for hit in found.hits]
            return rows, time.perf_counter() - began

        asked = queries.tolist()
        ask(asked[0])
        with ThreadPoolExecutor(clients) as executor, Stopwatch(self.processes) as watch:
            answers = list(executor.map(ask, asked))
        return _run(watch, answers, sorted(used))

    def query_bare(self, queries: Vectors, document: int | None) -> dict[str, Any]:
        """Ask Postgres without any of Lathe's code."""
        with self.rows.sessions() as session:
            collection = session.get_one(Collection, self.rows.collection.id)
        asked = queries.tolist()
        ask_bare(self._url, collection, asked[:1], document)
        with Stopwatch(self.processes) as watch:
            answers = ask_bare(self._url, collection, asked, document)
        return _run(watch, answers, ["one statement"])

    def sizes(self) -> dict[str, int]:
        """Bytes on disk."""
        query = text(
            "SELECT pg_table_size('chunks'), pg_indexes_size('chunks'), "
            "coalesce((SELECT pg_relation_size(to_regclass(index_name)) FROM collections WHERE id = :id), 0)"
        )
        with self._engine.connect() as connection:
            row = connection.execute(query, {"id": self.rows.collection.id}).one()
        return {"rows": int(row[0]), "indexes": int(row[1]), "vector_index": int(row[2])}


def _run(watch: Stopwatch, answers: Sequence[tuple[list[int], float]], used: list[str]) -> dict[str, Any]:
    return {
        "wall": watch.spent.wall,
        "cpu": watch.spent.cpu,
        "found": [ids for ids, _ in answers],
        "latencies": [taken for _, taken in answers],
        "used": used,
    }


def _documents(vectors: Vectors, documents: int) -> Iterator[tuple[list[Chunk], Vectors]]:
    """The chunks of each of so many documents, with texts that tell their rows."""
    for document in range(documents):
        numbers = range(document, len(vectors), documents)
        names = [f"passage {number}" for number in numbers]
        chunks = [Chunk(name, 0, len(name), 3, None, None, None) for name in names]
        yield chunks, np.asarray(vectors[document::documents])


def loads(
    stack: Stack, folder: Path, *, number: int, rounds: int, seed: int, dice: random.Random
) -> dict[str, Any]:
    """Load the same vectors by COPY and by executemany, into a collection each."""
    with contextlib.ExitStack() as ending:
        lathe = LatheVectors(stack, "loads", folder, ending)
        vectors = Synthetic(seed).draw(number)
        works: dict[str, Callable[[Vectors, Rows, int], None]] = {
            "copy": lathe.load, "executemany": lathe.execute_many
        }  # fmt: skip
        runs: dict[str, list[Spent]] = {name: [] for name in works}
        for _ in range(rounds):
            for name in dice.sample(sorted(works), len(works)):
                rows = Rows(lathe.rows.engine, lathe.server, DIMENSIONS)
                with Stopwatch(lathe.processes) as watch:
                    works[name](vectors, rows, LOADED_DOCUMENTS)
                runs[name].append(watch.spent)
                rows.drop()
    stack.drop_database("loads")
    return {"vectors": number} | {
        name: {
            "per_second": [round(number / run.wall) for run in done],
            "median_per_second": round(number / statistics.median(run.wall for run in done)),
            "cpu_seconds": round(statistics.median(run.cpu for run in done), 2),
        }
        for name, done in runs.items()
    }


def grow(
    stack: Stack, folder: Path, *, number: int, with_peer: bool, asked: int, rounds: int, seed: int,
    dice: random.Random,
) -> dict[str, Any]:  # fmt: skip
    """Load, index and ask for so many vectors."""
    name, place = f"vectors_{number}", folder / f"vectors-{number}"
    place.mkdir()
    try:
        with contextlib.ExitStack() as ending:
            source = Synthetic(seed)
            vectors = source.write(place / "vectors.npy", number)
            np.save(place / "queries.npy", source.draw(asked))
            lathe = LatheVectors(stack, name, place, ending)
            sides: dict[str, Any] = {"lathe": _fill(lathe, vectors)}
            peer = ending.enter_context(DocumentPeer(place / "peer")) if with_peer else None
            if peer is not None:
                sides["peer"] = _fill_peer(peer, place)
            asking = Asking(lathe, peer, place, vectors, asked)
            sides["queries"] = asking.all(rounds, dice)
        return {"vectors": number, **sides}
    finally:
        stack.drop_database(name)
        shutil.rmtree(place, ignore_errors=True)


def _fill(lathe: LatheVectors, vectors: Vectors) -> dict[str, Any]:
    with MemoryWatch(lathe.server) as memory:
        with Stopwatch(lathe.processes) as loading:
            lathe.load(vectors, lathe.rows, DOCUMENTS)
        # As much as the product asks for when it has less.
        allowed = max(IndexPolicy().memory_bytes, memory_needed(len(vectors), DIMENSIONS))
        with Stopwatch(lathe.processes) as building:
            message = lathe.build(allowed)
    return {
        "load_seconds": round(loading.spent.wall, 2),
        "load_cpu_seconds": round(loading.spent.cpu, 2),
        "build_seconds": round(building.spent.wall, 2),
        "build_cpu_seconds": round(building.spent.cpu, 2),
        "build_memory_bytes_allowed": allowed,
        "built": message,
        "disk_bytes": lathe.sizes(),
        "peak_memory_bytes": memory.peak_bytes,
    }


def _fill_peer(peer: DocumentPeer, place: Path) -> dict[str, Any]:
    answer = peer.ask("load", path=str(place / "vectors.npy"), collection="vectors", documents=DOCUMENTS)
    return {
        "load_seconds": round(answer["wall"], 2),
        "load_cpu_seconds": round(answer["cpu"], 2),
        "disk_bytes": sum(path.stat().st_size for path in peer.folder.rglob("*") if path.is_file()),
        "peak_memory_bytes": peer.ask("memory")["peak_bytes"],
    }


class Asking:
    """Queries of both sides, in an order of chance, held against what comparing all finds."""

    def __init__(
        self, lathe: LatheVectors, peer: DocumentPeer | None, place: Path, vectors: Vectors, asked: int
    ) -> None:
        self._lathe, self._peer, self._place = lathe, peer, place
        self._queries: Vectors = np.load(place / "queries.npy")
        self._truth = {filtered: nearest(vectors, self._queries, filtered) for filtered in (None, 7)}
        self._ef_search = EF_SEARCH[0]

    def all(self, rounds: int, dice: random.Random) -> list[dict[str, Any]]:
        if self._peer is not None:
            self._raise_recall()
        sides = ["lathe"] if self._peer is None else ["lathe", "peer"]
        cases = [(side, clients, document) for side in sides for clients in CLIENTS for document in (None, 7)]
        cases += [("bare sql", 1, document) for document in (None, 7)]
        runs: dict[tuple[str, int, int | None], list[dict[str, Any]]] = {case: [] for case in cases}
        for _ in range(rounds):
            for case in dice.sample(cases, len(cases)):
                runs[case].append(self._ask(*case))
        return [self._told(*case, done) for case, done in runs.items()]

    def _raise_recall(self) -> None:
        """Let Chroma look as far as the goal's recall needs."""
        for self._ef_search in EF_SEARCH:
            if recall(self._ask("peer", 1, None)["found"], self._truth[None]) >= RECALL:
                return

    def _ask(self, side: str, clients: int, document: int | None) -> dict[str, Any]:
        if side == "lathe":
            return self._lathe.query(self._queries, clients=clients, document=document)
        if side == "bare sql":
            return self._lathe.query_bare(self._queries, document)
        assert self._peer is not None
        return self._peer.ask(
            "query", path=str(self._place / "queries.npy"), collection="vectors", clients=clients,
            ef_search=self._ef_search, document=document,
        )  # fmt: skip

    def _told(
        self, side: str, clients: int, document: int | None, runs: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        latencies = [taken for run in runs for taken in run["latencies"]]
        asked = len(self._queries)
        return {
            "side": side,
            "clients": clients,
            "filtered": document is not None,
            "per_second": round(statistics.median(asked / run["wall"] for run in runs), 1),
            "runs": [round(asked / run["wall"], 1) for run in runs],
            "p50_ms": round(percentile(latencies, 0.5) * 1000, 2),
            "p99_ms": round(percentile(latencies, 0.99) * 1000, 2),
            "cpu_ms_each": round(statistics.median(run["cpu"] for run in runs) / asked * 1000, 3),
            "recall": round(min(recall(run["found"], self._truth[document]) for run in runs), 4),
            "used": runs[0].get("used", [f"ef_search {self._ef_search}"]),
        }
