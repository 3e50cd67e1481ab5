from sqlalchemy import ForeignKey, Index, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Timestamp


class Answer(Base):
    """What a request that created a row was answered with, kept so that its repetitions get the same.

    `fingerprint` stands for project, path and body. `key` is the caller's Idempotency-Key, if it sent one.
    """

    __tablename__ = "answers"
    __table_args__ = (
        Index("ix_answers_key", "project_id", "path", "key", unique=True, postgresql_where="key IS NOT NULL"),
        Index("ix_answers_fingerprint", "fingerprint", "id"),
        Index("ix_answers_expires_at", "expires_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    path: Mapped[str]
    key: Mapped[str | None]
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int]
    body: Mapped[str]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Timestamp]
