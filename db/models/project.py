from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, Timestamp

DEFAULT_PROJECT = "default"
LIMITS = ("max_jobs", "max_gpu_minutes", "max_bytes", "max_requests_per_minute")


class Project(Base):
    """Owns every row that users make, and says how much they may use. A limit that is not set is none."""

    __tablename__ = "projects"
    __table_args__ = tuple(CheckConstraint(f"{name} >= 0", name=name) for name in LIMITS)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(server_default="")
    max_jobs: Mapped[int | None]  # queued and running at once
    max_gpu_minutes: Mapped[int | None]  # a calendar month, on the queues `train` and `gpu`
    max_bytes: Mapped[int | None]  # stored
    max_requests_per_minute: Mapped[int | None]
    created_at: Mapped[CreatedAt]
    archived_at: Mapped[Timestamp | None]  # its keys are refused since; its rows stay
