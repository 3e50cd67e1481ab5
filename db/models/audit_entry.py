from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt


class AuditEntry(Base):
    """A request that changed something, or was refused.

    It points at no other table: it outlives what it tells of. `project_id` is None where nobody knows
    who asked.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_project_id_id", "project_id", "id"),
        Index("ix_audit_entries_created_at", "created_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str | None]
    key_id: Mapped[str | None]
    action: Mapped[str]  # the operation's name, as the API's own description has it
    method: Mapped[str]
    path: Mapped[str]
    target: Mapped[str | None]  # the id of what was made or changed
    status: Mapped[int]
    code: Mapped[str | None]  # of the error, if it was one
    address: Mapped[str | None]
    request_id: Mapped[str]
    times: Mapped[int]  # refusals of one kind that came together are one entry
    created_at: Mapped[CreatedAt]
