from typing import Any

from sqlalchemy import ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, JSONObject, Timestamp


class StoredResponse(Base):
    """A turn of a conversation: what came in, and the response as it was given, its output within.

    `previous_id` is the turn before, which may have been deleted. Whoever goes on from a turn uses all before
    it, too.
    """

    __tablename__ = "responses"
    __table_args__ = (
        Index("ix_responses_project_id", "project_id"),
        Index("ix_responses_last_used_at", "last_used_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    previous_id: Mapped[str | None]
    input: Mapped[list[Any]]
    body: Mapped[JSONObject]
    bytes: Mapped[int]
    created_at: Mapped[CreatedAt]
    last_used_at: Mapped[Timestamp] = mapped_column(server_default=func.clock_timestamp())
