from typing import Any

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.languages import SIMPLE
from db.models.base import Base, CreatedAt, JSONObject, Timestamp, one_of
from db.states import DocumentStatus


class Document(Base):
    """A file in a collection.

    `text` is what was read of the file; chunks point into it by characters. `job_id` is the job that was last
    asked to ingest it: only that job writes here. While a document is ingested again, its old chunks stay
    until the new ones take their place.
    """

    __tablename__ = "documents"
    __table_args__ = (
        one_of("status", DocumentStatus),
        UniqueConstraint("collection_id", "file_id"),
        Index("ix_documents_collection_id_id", "collection_id", "id"),
        Index("ix_documents_collection_id_content_hash", "collection_id", "content_hash"),
        Index("ix_documents_file_id", "file_id"),
        Index("ix_documents_job_id", "job_id"),
        # Every search tells how many of a collection are still being read, and they are few.
        Index("ix_documents_unfinished", "collection_id", postgresql_where="status = 'in_progress'"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    collection_id: Mapped[str] = mapped_column(ForeignKey("collections.id", ondelete="CASCADE"))
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    filename: Mapped[str]
    content_hash: Mapped[str]  # sha256 of the file's bytes
    status: Mapped[str] = mapped_column(default=DocumentStatus.IN_PROGRESS)
    attributes: Mapped[JSONObject]
    chunking: Mapped[JSONObject]
    language: Mapped[str | None]  # its name: as it was given, or else as it was detected when it was read
    configuration: Mapped[str] = mapped_column(default=SIMPLE)  # Postgres's, that its words are in
    password: Mapped[str | None]  # of an encrypted file, until it has been read
    text: Mapped[str | None] = mapped_column(deferred=True)
    page_starts: Mapped[list[Any] | None] = mapped_column(deferred=True)
    page_labels: Mapped[list[Any] | None] = mapped_column(deferred=True)
    pages: Mapped[int | None]
    details: Mapped[JSONObject | None]  # title, author
    chunk_count: Mapped[int] = mapped_column(default=0)
    usage_bytes: Mapped[int] = mapped_column(default=0)
    error: Mapped[JSONObject | None]
    created_at: Mapped[CreatedAt]
    completed_at: Mapped[Timestamp | None]
