from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, JSONObject


class Event(Base):
    """Something a job tells its user; with type `metrics`, measured values in `data`."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job_id_id", "job_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[str | None]
    attempt: Mapped[int | None]
    type: Mapped[str] = mapped_column(default="message")
    level: Mapped[str] = mapped_column(default="info")
    message: Mapped[str]
    data: Mapped[JSONObject | None]
    created_at: Mapped[CreatedAt]
