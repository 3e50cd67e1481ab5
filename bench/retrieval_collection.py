"""The texts as a collection: read, cut, embedded and loaded by the product's own functions.

Vectors are kept in the cache by their text and model, so that only a first run waits for them.
"""

import hashlib
import sqlite3
import struct
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.orm import Session

from bench.retrieval_texts import SourceText
from db.languages import configuration_of
from db.models import Collection, Document, File
from db.queries.collections import create_collection
from db.queries.documents import add_documents
from db.queries.languages import text_search_configurations
from db.states import DocumentStatus
from retrieval.chunking import Chunk, Chunking, cut
from retrieval.content import Content
from retrieval.copy_rows import write_rows
from retrieval.headings import under_heading
from retrieval.readers import Readers
from retrieval.reading import DocumentFile, read_document
from retrieval.tokens import EmbeddingTokenizer
from serving.embeddings import EmbeddingModel, EmbeddingServer
from worker.documents import COPY

READERS = 2

Passages = list[tuple[Chunk, bytes]]  # with their vectors


def read_texts(texts: Sequence[SourceText]) -> dict[str, Content]:
    """Returns: the content of each text, by name."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Readers(READERS) as readers,
        ThreadPoolExecutor(READERS) as executor,
    ):

        def read(text: SourceText) -> Content:
            path = Path(folder, text.filename)
            path.write_bytes(text.data)
            return read_document(DocumentFile(path, text.filename), readers, executor)

        return dict(zip([text.name for text in texts], executor.map(read, texts), strict=True))


def cut_texts(contents: dict[str, Content], chunking: Chunking) -> dict[str, list[Chunk]]:
    tokenizer = EmbeddingTokenizer()
    return {name: cut(content, chunking, tokenizer) for name, content in contents.items()}


class Embedder:
    """Vectors of texts, from the cache or the embedding server."""

    def __init__(self, server: EmbeddingServer, cache: Path) -> None:
        self._server = server
        self.model: EmbeddingModel = server.model()
        self._tokenizer = EmbeddingTokenizer()
        cache.parent.mkdir(parents=True, exist_ok=True)
        self._kept = sqlite3.connect(cache)
        self._kept.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB)")

    def vectors(self, texts: Sequence[str]) -> list[bytes]:
        """Of float32, little-endian."""
        keys = [self._key(text) for text in texts]
        found: dict[str, bytes] = {}
        for key in keys:
            row = self._kept.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = row[0]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        tokens = [self._tokenizer.count(text) for text in new.values()]
        found |= zip(new, self._server.embed(list(new.values()), tokens), strict=True)
        with self._kept:
            self._kept.executemany(
                "INSERT OR IGNORE INTO vectors VALUES (?, ?)", [(key, found[key]) for key in new]
            )
        return [found[key] for key in keys]

    def query_vectors(self, texts: Sequence[str]) -> list[list[float]]:
        return [list(struct.unpack(f"<{len(vector) // 4}f", vector)) for vector in self.vectors(texts)]

    def _key(self, text: str) -> str:
        return hashlib.sha256(f"{self.model.name} {self.model.revision} {text}".encode()).hexdigest()


def embed_texts(
    texts: Sequence[SourceText], chunks: dict[str, list[Chunk]], embedder: Embedder
) -> dict[str, Passages]:
    """A text at a time, so that what is embedded is kept when a run is ended."""
    tokenizer = EmbeddingTokenizer()
    passages = {}
    for text in texts:
        own = chunks[text.name]
        headed = [under_heading(chunk, text.filename, tokenizer)[0] for chunk in own]
        passages[text.name] = list(zip(own, embedder.vectors(headed), strict=True))
    return passages


def load(
    session: Session,
    texts: Sequence[SourceText],
    passages: dict[str, Passages],
    languages: dict[str, str],
    model: EmbeddingModel,
) -> Collection:
    """Load a collection with a document for each text, named as the text is."""
    configurations = text_search_configurations(session)
    collection = create_collection(session, project_id="default", name="bench")
    collection.embedding_model, collection.embedding_revision = model.name, model.revision
    with tempfile.TemporaryDirectory() as folder:
        for text in texts:
            document = _add_document(session, collection, text)
            document.language = languages[text.name]
            document.configuration = configuration_of(document.language, configurations)
            _load_passages(session, document, passages[text.name], Path(folder, "rows"))
    return collection


def _load_passages(session: Session, document: Document, passages: Passages, rows: Path) -> None:
    owner = (document.project_id, document.collection_id, document.id)
    chunks, vectors = [chunk for chunk, _ in passages], [vector for _, vector in passages]
    write_rows(rows, owner, chunks, vectors, document.configuration)
    with rows.open("rb") as file:
        session.connection().connection.cursor().copy_expert(COPY, file)
    document.status, document.chunk_count = str(DocumentStatus.COMPLETED), len(passages)
    session.flush()


def _add_document(session: Session, collection: Collection, text: SourceText) -> Document:
    file = session.get(File, f"file-{text.sha256[:32]}")
    if file is None:
        file = File(
            id=f"file-{text.sha256[:32]}",
            project_id=collection.project_id,
            purpose="assistants",
            filename=text.name,
            bytes=len(text.data),
            sha256=text.sha256,
            path=text.name,
        )
        session.add(file)
        session.flush()
    [document] = add_documents(session, collection, [file], attributes=[{}], chunking=[{}], passwords=[None])
    return document
