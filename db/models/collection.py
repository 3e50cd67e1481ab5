from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, JSONObject


class Collection(Base):
    """Documents that are searched together: OpenAI's vector store.

    What embeds its first chunk is fixed for all the others, since vectors of two models cannot be compared.
    `model_id`: the model whose own it is, with which it goes. Any other may be served by it all the same.
    """

    __tablename__ = "collections"
    __table_args__ = (
        CheckConstraint("expires_after_days BETWEEN 1 AND 365", name="expires_after_days"),
        Index("ix_collections_project_id_id", "project_id", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), unique=True)
    name: Mapped[str]
    notes: Mapped[JSONObject] = mapped_column("metadata")  # `metadata` is SQLAlchemy's own
    embedding_model: Mapped[str | None]
    embedding_revision: Mapped[str | None]
    dimensions: Mapped[int | None]
    # The index of its vectors, if it has one: of its chunks up to an id, and how many those were.
    index_name: Mapped[str | None]
    indexed_through: Mapped[int | None]
    indexed_chunks: Mapped[int | None]
    expires_after_days: Mapped[int | None]
    created_at: Mapped[CreatedAt]
    last_active_at: Mapped[CreatedAt]
