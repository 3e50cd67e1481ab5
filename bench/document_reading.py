"""From PDFs to rows, file by file and without an embedder: Lathe's own functions against the peer's."""

import json
import random
import re
import statistics
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from bench.document_files import Manual
from bench.document_peer import DocumentPeer
from bench.document_rows import Rows
from bench.spent import Spent, Stopwatch, tree
from retrieval.chunking import AUTO_OVERLAP_TOKENS, AUTO_TOKENS, Chunk, Chunking
from retrieval.clean_text import join_broken_words
from retrieval.cutting import cut_in_reader
from retrieval.readers import Clock, Readers
from retrieval.reading import DocumentFile, read_document
from retrieval.tokens import EmbeddingTokenizer
from serving.embedding_weights import weights_folder

DIMENSIONS = 384
# CJK is written without spaces: each of its characters counts as a word.
CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3"
WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")
# Rounds of one file: a run of a long one tells as much as several of a short one do.
ENOUGH_SECONDS = 20.0
# What is shown beside the goals, and costs as much as what is judged: done once a file.
UNJUDGED = "peer_ingest_by_characters"
# What both cut into: tokens, or about as many characters as those are in English.
CHUNKING = {
    "tokens": AUTO_TOKENS,
    "overlap_tokens": AUTO_OVERLAP_TOKENS,
    "characters": AUTO_TOKENS * 4,
    "overlap": AUTO_OVERLAP_TOKENS * 4,
}

Measured = TypeVar("Measured")


def words(text: str) -> Counter[str]:
    joined = unicodedata.normalize("NFKC", join_broken_words(text))
    return Counter(WORD.findall(joined.lower()))


def letters(text: str) -> Counter[str]:
    """Its letters and digits: what is left of a text whose spaces its reader has lost."""
    return Counter(character for character in unicodedata.normalize("NFKC", text) if character.isalnum())


def agreement(one: Counter[str], other: Counter[str]) -> float:
    """What two bags share, 0 to 1. Source: Dice 1945, 2 |A ∩ B| / (|A| + |B|)."""
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


def chunking(*, by_tokens: bool) -> dict[str, Any]:
    """What the peer is told of how to cut."""
    return {**CHUNKING, "tokenizer": str(weights_folder() / "tokenizer.json"), "by_tokens": by_tokens}


class LatheReading:
    """The functions that the steps of an ingest call, in their order, with readers that are warm."""

    def __init__(self, readers: Readers, executor: ThreadPoolExecutor, rows: Rows, folder: Path) -> None:
        self._readers, self._executor, self._rows, self._folder = readers, executor, rows, folder
        self._tokenizer = EmbeddingTokenizer()
        random_vectors = np.random.default_rng(1).normal(size=(4096, DIMENSIONS)).astype("<f4")
        self._vectors = [vector.tobytes() for vector in random_vectors]

    def processes(self) -> list[psutil.Process]:
        """The readers, and the processes of Postgres."""
        readers = [
            child
            for child in psutil.Process().children()
            if child.status() != psutil.STATUS_ZOMBIE and "retrieval.reader" in child.cmdline()
        ]
        return [*readers, *tree([self._rows.server])]

    def extract(self, manual: Manual, pages: int) -> list[str]:
        """The text of a PDF's pages, by one reader."""
        task = {"task": "pages", "path": str(manual.path), "password": None, "first": 0, "last": pages}
        return [page["text"] for page in self._readers.do(task, clock=Clock(300))["pages"]]

    def pages(self, manual: Manual) -> int:
        task = {"task": "open", "path": str(manual.path), "password": None, "filename": manual.path.name}
        return int(self._readers.do(task, clock=Clock(60))["pages"])

    def cut(self, manual: Manual) -> list[Chunk]:
        """Read a file and cut it."""
        file = DocumentFile(manual.path, manual.path.name)
        content = read_document(file, self._readers, self._executor)
        path = self._folder / "content.json"
        path.write_text(json.dumps(content.to_json()), encoding="utf-8")
        rows = cut_in_reader(path, len(content.text), Chunking(), self._tokenizer, self._readers)
        return [Chunk(text=content.text[row["start"] : row["end"]], **row) for row in rows]

    def ingest(self, manual: Manual) -> int:
        """Read, cut, and load with vectors that are there already.

        Returns:
            how many chunks.
        """
        chunks = self.cut(manual)
        vectors = (self._vectors[number % len(self._vectors)] for number in range(len(chunks)))
        self._rows.load(self._folder / "chunks.copy", manual.path.name, chunks, vectors)
        return len(chunks)


def compare(
    manuals: Sequence[Manual], lathe: LatheReading, peer: DocumentPeer, *, rounds: int, dice: random.Random
) -> Iterator[dict[str, Any]]:
    """Read and ingest every file by both; the medians of each, as soon as it is done."""
    lathe.ingest(manuals[0])  # starts the readers, and imports everything
    peer.ask("ingest", path=str(manuals[0].path), collection="warm", embedder=DIMENSIONS,
             chunking=chunking(by_tokens=True))  # fmt: skip
    for manual in manuals:
        file = _Compared(manual, lathe, peer)
        yield file.told(in_rounds(file.works, rounds, dice))


def in_rounds(
    works: Mapping[str, Callable[[], Measured]], rounds: int, dice: random.Random
) -> dict[str, list[Measured]]:
    """What each of a file's works gave, round by round, in an order of chance.

    Args:
        rounds: at most; none begins once `ENOUGH_SECONDS` have gone by.
    """
    runs: dict[str, list[Measured]] = {name: [] for name in works}
    began = time.perf_counter()
    for turn in range(rounds):
        if turn and time.perf_counter() - began > ENOUGH_SECONDS:
            break
        names = sorted(name for name in runs if not (turn and name == UNJUDGED))
        for name in dice.sample(names, len(names)):
            runs[name].append(works[name]())
    return runs


class _Compared:
    """A file, what is done with it, and what came of that."""

    def __init__(self, manual: Manual, lathe: LatheReading, peer: DocumentPeer) -> None:
        self._manual, self._lathe, self._peer = manual, lathe, peer
        self._pages = lathe.pages(manual)
        self._texts: dict[str, str] = {}
        self._chunks: dict[str, int] = {}
        self.works: dict[str, Callable[[], Spent]] = {
            "text": self._text,
            "peer_text": self._peer_text,
            "ingest": self._ingest,
            "peer_ingest": lambda: self._peer_ingest(by_tokens=True),
            UNJUDGED: lambda: self._peer_ingest(by_tokens=False),
        }

    def _text(self) -> Spent:
        with Stopwatch(self._lathe.processes) as watch:
            pages = self._lathe.extract(self._manual, self._pages)
        self._texts["lathe"] = "\n".join(pages)
        return watch.spent

    def _ingest(self) -> Spent:
        with Stopwatch(self._lathe.processes) as watch:
            self._chunks["lathe"] = self._lathe.ingest(self._manual)
        return watch.spent

    def _peer_text(self) -> Spent:
        answer = self._peer.ask("extract", path=str(self._manual.path))
        self._texts["peer"] = "\n".join(answer["pages"])
        return Spent(answer["wall"], answer["cpu"])

    def _peer_ingest(self, *, by_tokens: bool) -> Spent:
        answer = self._peer.ask(
            "ingest", path=str(self._manual.path), collection="ingest", embedder=DIMENSIONS,
            chunking=chunking(by_tokens=by_tokens),
        )  # fmt: skip
        self._chunks["peer" if by_tokens else "peer_by_characters"] = answer["chunks"]
        return Spent(answer["wall"], answer["cpu"])

    def told(self, runs: Mapping[str, Sequence[Spent]]) -> dict[str, Any]:
        ours, theirs = self._texts["lathe"], self._texts["peer"]
        medians = {name: _median(done) for name, done in runs.items()}
        return {
            "file": self._manual.path.name,
            "source": self._manual.source,
            "pages": self._pages,
            "rounds": len(runs["text"]),
            "words_agree": round(agreement(words(ours), words(theirs)), 4),
            "letters_agree": round(agreement(letters(ours), letters(theirs)), 4),
            "chunks": self._chunks,
            "wall": {name: round(spent.wall, 4) for name, spent in medians.items()},
            "cpu": {name: round(spent.cpu, 4) for name, spent in medians.items()},
        }


def _median(runs: Sequence[Spent]) -> Spent:
    return Spent(statistics.median(run.wall for run in runs), statistics.median(run.cpu for run in runs))
