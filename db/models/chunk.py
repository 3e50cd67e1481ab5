from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import Computed, ForeignKey, Index
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class Chunk(Base):
    """A passage of a document: characters `start_char` to before `end_char` of its text.

    The vector has as many dimensions as the collection's embedding model gives it, at half precision: the
    same recall in half the room. It stays in the row, which texts and words leave: comparing all vectors of a
    collection reads little else. A large collection's index is `retrieval/vector_index.py`'s.

    `words` are what full text finds it by, in the text search `configuration` of its document's language.

    Rows are loaded without a lock on their collection and document, which nobody shall have to wait for; both
    are locked and looked at before the commit, when the foreign key is checked.
    """

    __tablename__ = "chunks"
    __table_args__ = (
        Index("ix_chunks_document_id_position", "document_id", "position", unique=True),
        Index("ix_chunks_collection_id_id", "collection_id", "id"),
        Index("ix_chunks_words", "words", postgresql_using="gin"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    collection_id: Mapped[str]  # its document's
    document_id: Mapped[str] = mapped_column(
        ForeignKey("documents.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED")
    )
    position: Mapped[int]
    text: Mapped[str]
    start_char: Mapped[int]
    end_char: Mapped[int]
    first_page: Mapped[int | None]
    last_page: Mapped[int | None]
    section: Mapped[str | None]
    tokens: Mapped[int]
    embedding: Mapped[Any] = mapped_column(HALFVEC())
    configuration: Mapped[str]
    words: Mapped[Any] = mapped_column(
        TSVECTOR, Computed("chunk_words(configuration, text)", persisted=True), deferred=True
    )
