from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Timestamp


class Upload(Base):
    """A large file on its way: it comes in parts, and is a file once it is completed.

    `bytes` is what it was announced with, and `file_id` a file that may be gone by now.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'completed', 'cancelled')", name="status"),
        CheckConstraint("bytes >= 1", name="bytes"),
        Index("ix_uploads_project_id", "project_id"),
        Index("ix_uploads_expires_at", "expires_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    purpose: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int]
    status: Mapped[str] = mapped_column(default="pending")
    file_id: Mapped[str | None]
    file_seconds: Mapped[int | None]  # after which the file expires
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[Timestamp]


class UploadPart(Base):
    """Some of an upload's bytes, at `uploads/<upload id>/<part id>`."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_upload_id", "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    bytes: Mapped[int]
    created_at: Mapped[CreatedAt]
