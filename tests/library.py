"""Documents in collections as a finished ingest leaves them, by the same code that reads and cuts them."""

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy.orm import Session

from db.ids import new_id
from db.models import Collection, Document
from db.queries.documents import add_documents
from db.states import DocumentStatus
from retrieval.chunking import Chunking, cut
from retrieval.content import Content
from retrieval.copy_rows import COLUMNS, write_rows
from retrieval.readers import Readers
from retrieval.reading import DocumentFile, read_document
from retrieval.tokens import EmbeddingTokenizer
from tests.documents import write
from tests.embedding_server import DIMENSIONS, EmbeddingStandIn, embed
from tests.rows import add_file

COPY = f"COPY chunks ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)"
CHUNKING = Chunking(48, 8)


class Library:
    """Puts documents into collections.

    Args:
        embeddings: the server whose vectors the collections are said to hold.
    """

    def __init__(self, folder: Path, embeddings: EmbeddingStandIn) -> None:
        self._folder = folder
        self._embeddings = embeddings
        self._tokenizer = EmbeddingTokenizer()

    def read(self, filename: str, content: bytes) -> Content:
        with Readers(1) as readers, ThreadPoolExecutor(1) as executor:
            path = write(self._folder, new_id("upload"), content)
            return read_document(DocumentFile(path, filename, None), readers, executor)

    def put(
        self,
        session: Session,
        collection: Collection,
        filename: str,
        content: bytes | str,
        *,
        chunking: Chunking = CHUNKING,
    ) -> Document:
        """Put a file into a collection; a text is what was read of it."""
        whole = Content(content) if isinstance(content, str) else self.read(filename, content)
        document = self.announce(session, collection, filename, chunking=chunking)
        chunks = cut(whole, chunking, self._tokenizer)
        rows = self._folder / f"{document.id}.copy"
        vectors = [struct.pack(f"<{DIMENSIONS}f", *embed(chunk.text)) for chunk in chunks]
        write_rows(rows, (collection.project_id, collection.id, document.id), chunks, vectors)
        with rows.open("rb") as file:
            session.connection().connection.cursor().copy_expert(COPY, file)
        document.text, document.chunk_count = whole.text, len(chunks)
        document.page_starts, document.page_labels = whole.page_starts, whole.page_labels
        document.pages = len(whole.page_starts) or None
        document.status = str(DocumentStatus.COMPLETED)
        collection.embedding_model, collection.dimensions = "default", DIMENSIONS
        collection.embedding_revision = self._embeddings.model_revision
        session.flush()
        return document

    def announce(
        self, session: Session, collection: Collection, filename: str, *, chunking: Chunking = CHUNKING
    ) -> Document:
        """A document that nobody has read yet."""
        file = add_file(session, filename, project_id=collection.project_id)
        cut_by = {"max_tokens": chunking.max_tokens, "overlap_tokens": chunking.overlap_tokens}
        [document] = add_documents(
            session, collection, [file], attributes=[{}], chunking=[cut_by], passwords=[None]
        )
        return document
