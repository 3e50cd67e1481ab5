"""Embed the chunks of an ingest, and hand over each document as soon as it is whole.

Documents go in windows, and the next window's requests wait in line behind those of the one before: between
two windows the server is never idle.
"""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from db.errors import InvalidInput, Unavailable
from db.languages import SIMPLE, configuration_of
from retrieval.chunking import Chunk
from retrieval.copy_rows import write_rows
from retrieval.headings import under_heading
from retrieval.tokens import shared_tokenizer, warm_default_tokenizer
from serving.embeddings import EmbeddingModel, EmbeddingServer, Vectors
from worker.step import DocumentInput, Step
from worker.steps.embedding_choice import EmbeddingChoice

WINDOW_CHUNKS = 64
WINDOWS_AT_ONCE = 2


def warm_up() -> None:
    """Load what each process of this step would else load for itself; what cannot be, it will tell of."""
    warm_default_tokenizer()
    with EmbeddingServer("http://127.0.0.1"):
        pass  # httpx imports what it sends by when the first client is made


def run(step: Step) -> dict[str, Any]:
    """Give each document's chunks a vector.

    Raises:
        Unavailable: the embedding server does not answer; what was handed over before stays.
    """
    extracted = step.input.results["extract"]
    by_id = {row["id"]: row for row in extracted["documents"]}
    settings = step.input.settings
    with (
        ThreadPoolExecutor(WINDOWS_AT_ONCE) as executor,
        EmbeddingServer(settings.embedding_server_url, api_key=settings.embedding_server_key) as server,
    ):
        waiting = sum(by_id[document.id]["chunks"] for document in step.input.documents)
        embedder = _Embedder(step, EmbeddingChoice(step, server, chunks=waiting), by_id)
        for _ in executor.map(embedder.embed, _windows(step.input.documents, by_id)):
            pass
    embedded = [row for row in by_id.values() if row["id"] not in embedder.failed]
    return {
        "collection": step.input.params["collection"],
        "documents": len(embedded),
        "failed": extracted["failed"] + len(embedder.failed),
        "chunks": sum(row["chunks"] for row in embedded),
        "pages": sum(row["pages"] for row in embedded),
    }


def _windows(
    documents: list[DocumentInput], extracted: dict[str, dict[str, Any]]
) -> Iterator[list[DocumentInput]]:
    """Documents to be embedded together, since requests of a chunk or two leave the server half idle."""
    window: list[DocumentInput] = []
    chunks = 0
    for document in documents:
        window.append(document)
        chunks += extracted[document.id]["chunks"]
        if chunks >= WINDOW_CHUNKS:
            yield window
            window, chunks = [], 0
    if window:
        yield window


class _Embedder:
    """Embeds windows, by several threads. `failed`: the documents whose text was refused."""

    def __init__(self, step: Step, choice: EmbeddingChoice, extracted: dict[str, dict[str, Any]]) -> None:
        self._step = step
        self._choice = choice
        settings = step.input.settings
        self._tokenizer = shared_tokenizer(settings.embedding_tokenizer, settings.embedding_max_tokens)
        # What an older Lathe has extracted says nothing of the language.
        self._languages = {
            document_id: row.get("language") or SIMPLE for document_id, row in extracted.items()
        }
        self.failed: set[str] = set()
        self._total = sum(row["chunks"] for row in extracted.values())
        waiting = sum(extracted[document.id]["chunks"] for document in step.input.documents)
        self._done = self._total - waiting
        self._lock = threading.Lock()
        self._add(0)

    def embed(self, window: list[DocumentInput]) -> None:
        """Embed documents together, or one by one if the server refuses something of them."""
        contents = [self._read(document) for document in window]
        together = [
            under_heading(chunk, document.filename, self._tokenizer)
            for document, (_, chunks) in zip(window, contents, strict=True)
            for chunk in chunks
        ]
        # Asked each time: the server may have come back with another model.
        model = self._choice.model()
        counted = 0

        def count(done: int) -> None:
            nonlocal counted
            self._add(done - counted)
            counted = done

        try:
            vectors = self._choice.embed(
                [text for text, _ in together], [tokens for _, tokens in together], count
            )
        except InvalidInput as error:
            if len(window) > 1:
                count(0)
                for document in window:
                    self.embed([document])
                return
            count(len(together))
            self._refused(window[0], error)
        else:
            for document, (text, chunks) in zip(window, contents, strict=True):
                own, vectors = vectors[: len(chunks)], vectors[len(chunks) :]
                self._hand_over(document, text, chunks, own, model)

    def _hand_over(
        self,
        document: DocumentInput,
        text: str,
        chunks: list[Chunk],
        vectors: Vectors,
        model: EmbeddingModel,
    ) -> None:
        dimensions = {len(vector) // 4 for vector in vectors}
        if len(dimensions) != 1:
            raise Unavailable("The embedding server gave vectors of several lengths.")
        rows = self._step.input.folder / f"{document.id}.copy"
        language = self._languages[document.id]
        configuration = configuration_of(language, self._step.input.configurations)
        owner = (document.project_id, document.collection_id, document.id)
        write_rows(rows, owner, chunks, vectors, configuration)
        content = self._step.input.folder / f"{document.id}.json"
        content.write_text(text, encoding="utf-8")
        self._step.document_ready(
            document.id,
            rows=rows,
            content=content,
            chunks=len(chunks),
            language=language,
            configuration=configuration,
            embedded={"model": model.name, "revision": model.revision, "dimensions": dimensions.pop()},
        )

    def _refused(self, document: DocumentInput, error: InvalidInput) -> None:
        with self._lock:
            self.failed.add(document.id)
        self._step.document_failed(document.id, error.code, error.message)

    def _add(self, done: int) -> None:
        with self._lock:
            self._done += done
            self._step.progress(self._done, max(1, self._total), unit="chunks")

    def _read(self, document: DocumentInput) -> tuple[str, list[Chunk]]:
        folder = self._step.input.step_folders["extract"]
        text = (folder / f"{document.id}.json").read_text(encoding="utf-8")
        whole = json.loads(text)["text"]
        rows = json.loads((folder / f"{document.id}.chunks.json").read_text(encoding="utf-8"))
        return text, [Chunk(text=whole[row["start"] : row["end"]], **row) for row in rows]
