from sqlalchemy import Computed, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.models.base import Base, CreatedAt, JSONObject, Timestamp
from db.models.device import Device


class Attempt(Base):
    """One try at a step: who ran it, in which processes, and how it ended."""

    __tablename__ = "attempts"
    __table_args__ = (
        UniqueConstraint("step_id", "number"),
        UniqueConstraint("id", "open"),  # for those that refer to both
        # When each project was last given a slot of each queue.
        Index("ix_attempts_served", "queue", "project_id", "started_at"),
        Index("ix_attempts_worker_open", "worker", postgresql_where="ended_at IS NULL"),
        Index("ix_attempts_dead", "ended_at", postgresql_where="outcome <> 'done'"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    step_id: Mapped[int] = mapped_column(ForeignKey("steps.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    queue: Mapped[str]
    number: Mapped[int]
    worker: Mapped[str]
    host: Mapped[str]
    worker_process: Mapped[str | None]  # by `worker.identity`; a worker's name may come back, this cannot
    pid: Mapped[int | None]  # the child's
    process_group: Mapped[int | None]
    started_at: Mapped[CreatedAt]
    heartbeat_at: Mapped[Timestamp | None]
    resumed_from: Mapped[int | None]  # the step number of the checkpoint it went on from
    ended_at: Mapped[Timestamp | None]
    open: Mapped[bool] = mapped_column(Computed("ended_at IS NULL", persisted=True))
    outcome: Mapped[str | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    stderr: Mapped[str | None]  # its end
    error: Mapped[JSONObject | None]

    devices: Mapped[list[Device]] = relationship(
        secondary="attempt_devices", order_by=Device.index, viewonly=True
    )
