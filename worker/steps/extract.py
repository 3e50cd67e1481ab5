"""Read the documents of an ingest, and cut them into chunks. One that cannot be read stops no other.

No document is opened in this process: `retrieval.readers` has processes with limits for that.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from db.errors import InvalidInput
from db.wording import counted
from retrieval import reader
from retrieval.chunking import Chunking
from retrieval.cutting import cut_in_reader
from retrieval.language import detect
from retrieval.readers import Readers, Unreadable
from retrieval.reading import DocumentFile, read_document
from retrieval.tokens import shared_tokenizer, warm_default_tokenizer
from worker.step import DocumentInput, Step
from worker.steps.large_ingest import queue_of_embed

# One for its pages, and one for what it says of itself.
READERS_A_DOCUMENT = 2


def warm_up() -> None:
    """Load what each process of this step, and each of its readers, would else load for itself."""
    reader.preload()
    detect("")
    warm_default_tokenizer()


def run(step: Step) -> dict[str, Any]:
    """Leave `<document>.json`, what was read, and `<document>.chunks.json` of each document.

    Raises:
        InvalidInput: there is none that could be read.
    """
    documents = step.input.documents
    if not documents:
        step.event("There is nothing to read: each document is in the collection already, or was taken out.")
        return {"documents": [], "failed": 0}
    threads = step.input.settings.threads
    pages = _Pages(step, len(documents))
    rows = []
    with (
        Readers(threads, copies=READERS_A_DOCUMENT * len(documents)) as readers,
        ThreadPoolExecutor(threads) as page_ranges,
        ThreadPoolExecutor(1) as identifying,
        ThreadPoolExecutor(threads) as executor,
    ):
        if any(document.language is None for document in documents):
            # Half a second, for what identifies languages is loaded meanwhile.
            identifying.submit(detect, "")
        extractor = _Extractor(step, readers, page_ranges, identifying, pages)
        futures = {executor.submit(extractor.extract, document): document for document in documents}
        for future in as_completed(futures):
            document = futures[future]
            try:
                rows.append(future.result())
            except Unreadable as error:
                step.document_failed(document.id, error.code, error.message)
            pages.ended(document.id)
    if not rows:
        raise InvalidInput(
            "Not one of the documents could be read: the job's events say why of each.",
            code="no_document_read",
        )
    read, chunks = (sum(row[what] for row in rows) for what in ("pages", "chunks"))
    step.event(
        f"Read {len(rows)} of {counted(len(documents), 'document')}: {counted(read, 'page')}, "
        f"{counted(chunks, 'chunk')}."
    )
    order = {document.id: position for position, document in enumerate(documents)}
    rows.sort(key=lambda row: order[row["id"]])
    queue = queue_of_embed(step.input.settings, chunks=chunks)
    return {"documents": rows, "failed": len(documents) - len(rows), "next_queue": str(queue)}


class _Extractor:
    """Reads and cuts documents, several at once.

    Args:
        page_ranges: has a thread for each reader.
        identifying: has one thread, which tells languages.
    """

    def __init__(
        self,
        step: Step,
        readers: Readers,
        page_ranges: ThreadPoolExecutor,
        identifying: ThreadPoolExecutor,
        pages: "_Pages",
    ) -> None:
        self._step = step
        self._readers = readers
        self._page_ranges = page_ranges
        self._identifying = identifying
        self._pages = pages
        settings = step.input.settings
        self._tokenizer = shared_tokenizer(settings.embedding_tokenizer, settings.embedding_max_tokens)

    def extract(self, document: DocumentInput) -> dict[str, Any]:
        """Read and cut one document.

        Raises:
            Unreadable: with the reason.
        """
        file = DocumentFile(document.path, document.filename, document.password, document.language)
        content = read_document(
            file,
            self._readers,
            self._page_ranges,
            lambda done, total: self._pages.read(document.id, done, total),
        )
        for warning in content.warnings:
            self._step.event(f"{document.filename}: {warning}", level="warn", document_id=document.id)
        path = self._step.input.folder / f"{document.id}.json"
        path.write_text(json.dumps(content.to_json()), encoding="utf-8")
        chunking = Chunking(document.chunk_tokens, document.chunk_overlap_tokens)
        if chunking.max_tokens > self._tokenizer.most:
            self._step.event(
                f"{document.filename}: chunks have {self._tokenizer.most} tokens at most, which is what the "
                f"embedding model takes, and not {chunking.max_tokens}.",
                level="warn",
                document_id=document.id,
            )
        language = self._identifying.submit(lambda: document.language or detect(content.text))
        chunks = cut_in_reader(path, len(content.text), chunking, self._tokenizer, self._readers)
        path.with_suffix(".chunks.json").write_text(json.dumps(chunks), encoding="utf-8")
        return {
            "id": document.id,
            "pages": len(content.page_starts) or 1,
            "chunks": len(chunks),
            "language": language.result(),
        }


class _Pages:
    """How far the step is, by pages. A document counts as one until it is opened."""

    def __init__(self, step: Step, documents: int) -> None:
        self._step = step
        self._unopened = documents
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._lock = threading.Lock()
        self._say()

    def read(self, document_id: str, done: int, total: int) -> None:
        with self._lock:
            self._done[document_id], self._total[document_id] = done, total
            self._say()

    def ended(self, document_id: str) -> None:
        with self._lock:
            self._total.setdefault(document_id, 1)
            self._done[document_id] = self._total[document_id]
            self._say()

    def _say(self) -> None:
        unopened = self._unopened - len(self._total)
        self._step.progress(sum(self._done.values()), sum(self._total.values()) + unopened, unit="pages")
