"""What Lathe's documents are measured against: PyPDFLoader, RecursiveCharacterTextSplitter and Chroma.

Run by the Python of an environment of its own (`bench/document_peer.py` makes it), so nothing of Lathe's is
imported here. A request is a JSON line on stdin, `{"do": name, …}`, and its answer one on stdout, with the
seconds and CPU-seconds that the work itself took.
"""

import contextlib
import io
import json
import logging
import os
import resource
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from langchain_chroma import Chroma
from langchain_community.document_loaders import PyPDFLoader
from langchain_core.embeddings import Embeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pypdf import PdfReader
from tokenizers import Tokenizer

QUERY_LIMIT = 10


class Clock:
    """Seconds and CPU-seconds of a block, those of ended children included."""

    wall = cpu = 0.0

    def __enter__(self) -> "Clock":
        self._cpu, self._wall = _cpu(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, _cpu() - self._cpu

    def told(self, **more: Any) -> dict[str, Any]:
        return {"wall": self.wall, "cpu": self.cpu, **more}


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Given(Embeddings):
    """Vectors that are there already."""

    def __init__(self, dimensions: int) -> None:
        self._vectors = np.random.default_rng(1).normal(size=(4096, dimensions)).astype(np.float32).tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vectors[position % len(self._vectors)] for position in range(len(texts))]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class Served(Embeddings):
    """A server of OpenAI's protocol, asked as LangChain's own client does: 1,000 texts a request."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/embeddings"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector for start in range(0, len(texts), 1000) for vector in self._ask(texts[start:][:1000])]

    def embed_query(self, text: str) -> list[float]:
        return self._ask([text])[0]

    def _ask(self, texts: list[str]) -> list[list[float]]:
        body = json.dumps({"model": "default", "input": texts}).encode()
        request = urllib.request.Request(self._url, body, {"content-type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=900) as answer:  # noqa: S310 - of our own loopback
            rows = json.load(answer)["data"]
        return [row["embedding"] for row in sorted(rows, key=lambda row: row["index"])]


@cache
def by_sentence_transformers(weights: str) -> Embeddings:
    """What LangChain's own documentation takes: sentence-transformers in the same process, as it comes."""
    from langchain_huggingface import HuggingFaceEmbeddings

    embeddings: Embeddings = HuggingFaceEmbeddings(model_name=weights)
    return embeddings


class Peer:
    def __init__(self, folder: Path) -> None:
        settings = chromadb.Settings(anonymized_telemetry=False, is_persistent=True)
        self._client = chromadb.PersistentClient(str(folder), settings=settings)

    def extract(self, path: str) -> dict[str, Any]:
        with Clock() as clock:
            pages = [page.extract_text() for page in PdfReader(path).pages]
        return clock.told(pages=pages)

    def ingest(self, path: str, collection: str, chunking: dict[str, Any], embedder: Any) -> dict[str, Any]:
        """Read, cut and add a file.

        Args:
            embedder: a server's address, a model's folder, or a number of dimensions.
        """
        by = _embeddings(embedder)
        store = Chroma(collection, by, client=self._client)
        splitter = _splitter(**chunking)
        with Clock() as clock:
            chunks = splitter.split_documents(PyPDFLoader(path).load())
            most = self._client.get_max_batch_size()
            for start in range(0, len(chunks), most):
                store.add_documents(chunks[start : start + most])
        return clock.told(chunks=len(chunks), characters=sum(len(chunk.page_content) for chunk in chunks))

    def load(self, path: str, collection: str, documents: int) -> dict[str, Any]:
        """Add the vectors of a .npy file; of `documents`, each a row in turn."""
        vectors = np.load(path, mmap_mode="r")
        chroma = self._client.get_or_create_collection(
            collection, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
        most = self._client.get_max_batch_size()
        with Clock() as clock:
            for start in range(0, len(vectors), most):
                rows = range(start, min(start + most, len(vectors)))
                chroma.add(
                    ids=[str(row) for row in rows],
                    embeddings=np.asarray(vectors[start : start + most]),
                    documents=[f"passage {row}" for row in rows],
                    metadatas=[{"document": row % documents} for row in rows],
                )
        return clock.told()

    def query(
        self, path: str, collection: str, ef_search: int, clients: int, document: int | None
    ) -> dict[str, Any]:
        """Ask for the nearest of each vector of a .npy file, by so many threads."""
        vectors = np.load(path)
        chroma = self._client.get_collection(collection, embedding_function=None)
        if chroma.configuration["hnsw"]["ef_search"] != ef_search:
            chroma.modify(configuration={"hnsw": {"ef_search": ef_search}})
        where = None if document is None else {"document": document}

        def ask(vector: Any) -> tuple[list[int], float]:
            began = time.perf_counter()
            found = chroma.query(query_embeddings=vector[None, :], n_results=QUERY_LIMIT, where=where)
            return [int(name) for name in found["ids"][0]], time.perf_counter() - began

        ask(vectors[0])
        with ThreadPoolExecutor(clients) as executor, Clock() as clock:
            answers = list(executor.map(ask, vectors))
        return clock.told(found=[ids for ids, _ in answers], latencies=[taken for _, taken in answers])

    def drop(self, collection: str) -> dict[str, Any]:
        self._client.delete_collection(collection)
        return {}

    def memory(self) -> dict[str, Any]:
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        return {"peak_bytes": int(status.split()[0]) * 1024}


def _embeddings(embedder: int | str) -> Embeddings:
    if isinstance(embedder, int):
        return Given(embedder)
    return Served(embedder) if embedder.startswith("http://") else by_sentence_transformers(embedder)


def _splitter(
    *, tokenizer: str, tokens: int, overlap_tokens: int, characters: int, overlap: int, by_tokens: bool
) -> RecursiveCharacterTextSplitter:
    if not by_tokens:
        return RecursiveCharacterTextSplitter(chunk_size=characters, chunk_overlap=overlap)
    counting = Tokenizer.from_file(tokenizer)
    counting.no_truncation()
    counting.no_padding()
    return RecursiveCharacterTextSplitter(
        chunk_size=tokens,
        chunk_overlap=overlap_tokens,
        length_function=lambda text: len(counting.encode(text, add_special_tokens=False).ids),
    )


def answers(peer: Peer, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        request = json.loads(line)
        try:
            yield getattr(peer, request.pop("do"))(**request)
        except Exception as error:  # noqa: BLE001 - the edge of the process: told to who asked
            yield {"error": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    logging.disable(logging.CRITICAL)
    # What a library prints must not come between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out, contextlib.redirect_stdout(io.StringIO()):
        for answer in answers(Peer(Path(sys.argv[1])), iter(sys.stdin)):
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
