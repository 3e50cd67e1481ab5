from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Timestamp


class File(Base):
    """An uploaded file, or one that a job made. `path` is relative to the storage root.

    From `expires_at` on it is found no more, but for jobs that began before.
    """

    __tablename__ = "files"
    __table_args__ = (
        CheckConstraint("bytes >= 0", name="bytes"),
        Index("ix_files_project_id_id", "project_id", "id"),
        Index("ix_files_expires_at", "expires_at", postgresql_where="expires_at IS NOT NULL"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    path: Mapped[str]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Timestamp | None]
