"""Lathe's rows for the benchmark of documents: a collection, its documents, and chunks by COPY."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from db.ids import new_id
from db.models import Collection, Document, File
from db.queries.collections import create_collection
from db.session import make_session_factory, transaction
from db.states import DocumentStatus
from retrieval.chunking import Chunk
from retrieval.copy_rows import write_rows
from worker.documents import COPY

PROJECT = "default"

Owner = tuple[str, str, str]  # ids of the project, the collection and the document


class Rows:
    """One collection of a database, written as the worker writes it. `server` is Postgres."""

    def __init__(self, engine: Engine, server: psutil.Process, dimensions: int) -> None:
        self.sessions = make_session_factory(engine)
        self.engine, self.server = engine, server
        with transaction(self.sessions) as session:
            self.collection = create_collection(session, project_id=PROJECT, name="bench")
            self.collection.embedding_model, self.collection.embedding_revision = "default", "bench"
            self.collection.dimensions = dimensions

    @contextmanager
    def document(self, filename: str, chunks: int, **attributes: Any) -> Iterator[tuple[Session, Owner]]:
        """One transaction, in which a document is added and its chunks are to be."""
        file_id, document_id = new_id("file"), new_id("doc")
        with transaction(self.sessions) as session:
            session.add(
                File(id=file_id, project_id=PROJECT, purpose="assistants", filename=filename, bytes=0,
                     sha256=file_id, path=f"files/{file_id}")
            )  # fmt: skip
            session.flush()
            session.add(
                Document(id=document_id, project_id=PROJECT, collection_id=self.collection.id,
                         file_id=file_id, filename=filename, content_hash=file_id, attributes=attributes,
                         chunking={}, status=str(DocumentStatus.COMPLETED), chunk_count=chunks,
                         language="english", configuration="english")
            )  # fmt: skip
            session.flush()
            yield session, (PROJECT, self.collection.id, document_id)

    def load(
        self, path: Path, filename: str, chunks: Sequence[Chunk], vectors: Iterable[bytes], **attributes: Any
    ) -> None:
        """Load a document as the worker does: its rows in a file at `path`, and one commit."""
        with self.document(filename, len(chunks), **attributes) as (session, owner):
            write_rows(path, owner, chunks, vectors, "english")
            with path.open("rb") as file:
                session.connection().connection.cursor().copy_expert(COPY, file)

    def drop(self) -> None:
        """Remove the collection with all that is in it."""
        with transaction(self.sessions) as session:
            session.delete(session.get_one(Collection, self.collection.id))
