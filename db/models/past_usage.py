from datetime import date

from sqlalchemy import Date, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base


class PastUsage(Base):
    """What a project's deleted jobs used in a month: deleting a job gives none of its minutes back."""

    __tablename__ = "past_usage"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    month: Mapped[date] = mapped_column(Date, primary_key=True)  # its first day
    gpu_seconds: Mapped[float]
