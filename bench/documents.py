"""From a PDF to an answer, against LangChain and Chroma: `python -m bench.documents`.

The same files, chunks, vectors and embedding model for both. It starts a durable Postgres and every server
itself, and LangChain and Chroma in an environment of their own. Runs are interleaved, medians are shown, each
with its goal; a missed goal is exit status 1. `--only` does some of its parts.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import migrations
from bench import document_reading, document_searchable, document_vectors
from bench.document_files import Manual, manuals
from bench.document_peer import DocumentPeer, ensure_environment
from bench.document_reading import DIMENSIONS, LatheReading
from bench.document_rows import Rows
from bench.goals import show_goals
from bench.spent import MemoryWatch
from bench.stack import Stack
from db.session import make_engine
from retrieval.readers import Readers

PARTS = ("reading", "searchable", "loads", "growth")
TEXT_GOAL, AGREEMENT_GOAL, INGEST_GOAL = 5.0, 0.98, 3.0
SEARCHABLE_GOAL, EMBEDDER_GOAL = 1.5, 0.9
LOAD_GOAL, INDEX_GOAL = 2.5, 2.5
UNFILTERED_GOAL, FILTERED_GOAL = 1.0, 10.0
MIB = 1024**2


@dataclass(frozen=True)
class Size:
    """How much is done.

    Args:
        rounds: of each file that is read, at most.
        embedded_pages: files of more are left out where chunks are embedded.
        jobs: how many chunks are embedded in one, at least; the last is what is judged.
        single: how many of the smallest files are each a job of their own.
        vectors: how many, and whether Chroma takes as many, too.
    """

    rounds: int
    embedded_pages: int
    jobs: tuple[int, ...]
    single: int
    embedding_rounds: int
    loads: int
    vectors: tuple[tuple[int, bool], ...]
    asked: int
    load_rounds: int


QUICK = Size(2, 40, (500,), 2, 1, 3_000, ((4_000, False), (40_000, True)), 100, 2)
LONG = Size(3, 100, (300, 2_000), 5, 2, 20_000, ((10_000, True), (100_000, True), (1_000_000, False)), 300, 3)


class Findings(dict[str, Any]):
    """What is known already: the long form takes half an hour, and something may end it.

    Each part is told on stderr as soon as it is there, and all of them are kept in a file.
    """

    def __init__(self, kept: Path | None, known: Mapping[str, Any]) -> None:
        super().__init__(known)
        self._kept = kept

    def __setitem__(self, part: str, measured: Any) -> None:
        super().__setitem__(part, measured)
        self._tell(part, measured)

    def add(self, part: str, measured: Any) -> None:
        """Note one of several of a part."""
        self.setdefault(part, []).append(measured)
        self._tell(part, measured)

    def _tell(self, part: str, measured: Any) -> None:
        print(json.dumps({part: measured}), file=sys.stderr, flush=True)
        if self._kept is not None:
            unfinished = self._kept.with_name(f"{self._kept.name}.new")
            unfinished.write_text(json.dumps(self))
            unfinished.replace(self._kept)


class Bench:
    def __init__(self, stack: Stack, folder: Path, found: Findings, *, quick: bool, seed: int) -> None:
        self._stack, self._folder, self._found = stack, folder, found
        self._size = QUICK if quick else LONG
        self._dice = random.Random(seed)  # noqa: S311 - the order of runs
        self._seed = seed
        self._manuals: list[Manual] = manuals(folder, quick=quick)

    def documents(self, parts: Iterable[str]) -> None:
        """What is measured with PDFs."""
        with contextlib.ExitStack() as ending:
            url = self._stack.database("documents")
            migrations.upgrade(url)
            engine = make_engine(url)
            ending.callback(engine.dispose)
            assert self._stack.postgres.pid is not None
            rows = Rows(engine, psutil.Process(self._stack.postgres.pid), DIMENSIONS)
            cores = os.cpu_count() or 1
            readers = ending.enter_context(Readers(cores))
            executor = ending.enter_context(ThreadPoolExecutor(2 * cores))
            peer = ending.enter_context(DocumentPeer(self._folder / "peer"))
            reading = LatheReading(readers, executor, rows, self._folder)
            if "reading" in parts:
                with MemoryWatch(psutil.Process(os.getpid()), without=peer.process) as memory:
                    for row in document_reading.compare(
                        self._manuals, reading, peer, rounds=self._size.rounds, dice=self._dice
                    ):
                        self._found.add("reading", row)
                peak = {"lathe": memory.peak_bytes, "peer": peer.ask("memory")["peak_bytes"]}
                self._found["reading_peak_bytes"] = peak
            if "searchable" in parts:
                chosen = [
                    manual for manual in self._manuals if reading.pages(manual) <= self._size.embedded_pages
                ]
                for told in document_searchable.compare(
                    self._stack, chosen, reading, peer, sizes=self._size.jobs, single=self._size.single,
                    rounds=self._size.embedding_rounds, dice=self._dice,
                ):  # fmt: skip
                    self._found.add("searchable", told)

    def vectors(self, parts: Iterable[str]) -> None:
        """What is measured with vectors that are there already."""
        size = self._size
        if "loads" in parts:
            self._found["loads"] = document_vectors.loads(
                self._stack, self._folder, number=size.loads, rounds=size.load_rounds, seed=self._seed,
                dice=self._dice,
            )  # fmt: skip
        for number, with_peer in size.vectors if "growth" in parts else ():
            grown = document_vectors.grow(
                self._stack, self._folder, number=number, with_peer=with_peer, asked=size.asked,
                rounds=size.load_rounds, seed=self._seed, dice=self._dice,
            )  # fmt: skip
            self._found.add("growth", grown)


def ratios(rows: Sequence[Mapping[str, Any]], kind: str, ours: str, theirs: str) -> list[float]:
    """How many times as much the peer spends, file by file, from the least on."""
    return sorted(row[kind][theirs] / row[kind][ours] for row in rows)


def reading_goals(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    return [
        (
            "text: pypdf's CPU-seconds against ours",
            _middle(ratios(rows, "cpu", "text", "peer_text")),
            TEXT_GOAL,
        ),
        ("text: words that agree", _middle([row["words_agree"] for row in rows]), AGREEMENT_GOAL),
        (
            "ingest without embedding: the peer's seconds against ours",
            _middle(ratios(rows, "wall", "ingest", "peer_ingest")),
            INGEST_GOAL,
        ),
    ]


def searchable_goals(jobs: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Of the small files, each alone, their median; and of the job of the most chunks."""
    alone, largest = [job for job in jobs if len(job["files"]) == 1], jobs[-1]
    goals = []
    for told, judged in (
        (f"{len(alone)} small files, each to searchable", alone),
        (f"{largest['chunks']} chunks, files to searchable", [largest]),
    ):
        ratio, share = (_middle([job[what] for job in judged]) for what in ("ratio", "of_embedder"))
        by = "seconds of the peer, by sentence-transformers, against ours"
        goals.append((f"{told}: {by}", ratio, SEARCHABLE_GOAL))
        goals.append((f"{told}: share of the embedder's own rate", share, EMBEDDER_GOAL))
    return goals


def growth_goals(sizes: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Of the largest number of vectors that both have."""
    largest = [size for size in sizes if "peer" in size][-1]
    lathe, peer, number = largest["lathe"], largest["peer"], f"{largest['vectors']:,}"
    best = {
        (side, filtered): max(
            (row for row in largest["queries"] if row["side"] == side and row["filtered"] is filtered),
            key=lambda row: float(row["per_second"]),
        )
        for side in ("lathe", "peer")
        for filtered in (False, True)
    }
    rate = {case: float(row["per_second"]) for case, row in best.items()}
    seconds = lathe["load_seconds"] + lathe["build_seconds"]
    return [
        (f"{number} vectors loaded and indexed, against Chroma", peer["load_seconds"] / seconds, INDEX_GOAL),
        ("queries/s against Chroma", rate["lathe", False] / rate["peer", False], UNFILTERED_GOAL),
        ("recall@10", best["lathe", False]["recall"], document_vectors.RECALL),
        ("queries/s filtered to 1 %", rate["lathe", True] / rate["peer", True], FILTERED_GOAL),
        ("recall@10 filtered to 1 %", best["lathe", True]["recall"], document_vectors.RECALL),
    ]


def goals_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    goals: list[tuple[str, float, float]] = []
    if "reading" in found:
        goals += reading_goals(found["reading"])
    if "searchable" in found:
        goals += searchable_goals(found["searchable"])
    if "loads" in found:
        of = found["loads"]
        times = of["copy"]["median_per_second"] / of["executemany"]["median_per_second"]
        goals.append(("vectors loaded, against executemany", times, LOAD_GOAL))
    if "growth" in found:
        goals += growth_goals(found["growth"])
    return [
        {"what": what, "result": round(result, 3), "goal": f">= {goal:g}", "met": result >= goal}
        for what, result, goal in goals
    ]


def _middle(values: Sequence[float]) -> float:
    return statistics.median(values)


def bench(*, quick: bool, seed: int, parts: Sequence[str], kept: Path | None) -> dict[str, Any]:
    """Measure these parts, and keep in a file what is known already, and in the end all."""
    ensure_environment()
    folder = Path(tempfile.mkdtemp(prefix="lathe-bench-"))
    try:
        with contextlib.ExitStack() as ending:
            found = Findings(kept, {"seed": seed, "load_average_before": os.getloadavg()[0]})
            run = Bench(Stack(folder, ending), folder, found, quick=quick, seed=seed)
            if {"reading", "searchable"} & set(parts):
                run.documents(parts)
            run.vectors(parts)
            found["load_average_after"] = os.getloadavg()[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found["goals"] = goals_of(found)
    return found


def show(result: Mapping[str, Any]) -> None:
    for row in result.get("reading", []):
        cpu = {name: f"{spent * 1000:.0f}" for name, spent in row["cpu"].items()}
        print(
            f"{row['file']:30} {row['pages']:4} pages, words {row['words_agree']:.3f}, letters "
            f"{row['letters_agree']:.3f}; CPU-ms text {cpu['text']} against {cpu['peer_text']}, "
            f"ingest {cpu['ingest']} against {cpu['peer_ingest']} ({row['source']})"
        )
    if rows := result.get("reading"):
        for kind in ("cpu", "wall"):
            for ours, theirs in (
                ("text", "peer_text"), ("ingest", "peer_ingest"), ("ingest", "peer_ingest_by_characters"),
            ):  # fmt: skip
                told = " ".join(f"{times:.1f}" for times in ratios(rows, kind, ours, theirs))
                print(f"{kind} of {theirs} / {ours}, each file: {told}")
        print("peak MiB", {side: peak // MIB for side, peak in result["reading_peak_bytes"].items()})
    for job in result.get("searchable", []):
        of_our_server = job["ratio_with_our_server"]
        besides = f"{of_our_server} as the peer by our llama-server (no goal), " if of_our_server else ""
        print(
            f"{job['chunks']:,} chunks of {len(job['files'])} files, to searchable: {job['ratio']} times as "
            f"fast as the peer by sentence-transformers, {besides}{job['of_embedder']} of what its embedder "
            f"({job['embedder']}) does alone; seconds {json.dumps(job['seconds'])}, CPU-seconds "
            f"{json.dumps(job['cpu_seconds'])}, steps {json.dumps(job['steps_seconds'])}"
        )
    if "loads" in result:
        print("loads", json.dumps(result["loads"]))
    for size in result.get("growth", []):
        for side in ("lathe", "peer"):
            if side in size:
                print(f"{size['vectors']:,} vectors, {side}:", json.dumps(size[side]))
        for row in size["queries"]:
            print(f"  {size['vectors']:,}:", " ".join(f"{name}={value}" for name, value in row.items()))
    show_goals(result["goals"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="five minutes, for a look")
    parser.add_argument("--seed", type=int, default=1, help="of the vectors, and of the order of runs")
    parser.add_argument(
        "--json", nargs="?", const=True, metavar="FILE",
        help="print the result as JSON; with FILE, keep there what is known already",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts alone")
    options = parser.parse_args()
    kept = Path(options.json) if isinstance(options.json, str) else None
    result = bench(quick=options.quick, seed=options.seed, parts=options.only, kept=kept)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0 if all(goal["met"] for goal in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
