from typing import TYPE_CHECKING

from sqlalchemy import ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.models.base import Base, JSONObject, Timestamp, one_of
from db.models.job import Job
from db.states import Queue, StepStatus

if TYPE_CHECKING:
    from db.models.attempt import Attempt


class Step(Base):
    """What one worker runs: the `position`-th part of a job.

    `attempt` is the number of the newest attempt; while the step runs it is the fence, since only the
    attempt with this number may write. `succeeded_attempt` says whose folder counts.
    """

    __tablename__ = "steps"
    __table_args__ = (
        one_of("status", StepStatus),
        one_of("queue", Queue),
        UniqueConstraint("job_id", "position"),
        UniqueConstraint("job_id", "name"),
        Index("ix_steps_claimable", "queue", "not_before", postgresql_where="status = 'queued'"),
        Index("ix_steps_leases", "lease_expires_at", postgresql_where="status = 'running'"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    name: Mapped[str]
    position: Mapped[int]
    queue: Mapped[str]
    status: Mapped[str] = mapped_column(default=StepStatus.PENDING)
    attempt: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)  # attempts counted against max_attempts
    succeeded_attempt: Mapped[int | None]
    lease_expires_at: Mapped[Timestamp | None]
    not_before: Mapped[Timestamp | None]  # backoff after a lost attempt
    progress: Mapped[JSONObject | None]
    progressed_at: Mapped[Timestamp | None]  # the sign of life that the stall limit watches
    result: Mapped[JSONObject | None]
    started_at: Mapped[Timestamp | None]
    finished_at: Mapped[Timestamp | None]

    job: Mapped[Job] = relationship(back_populates="steps")
    attempts: Mapped[list["Attempt"]] = relationship(order_by="Attempt.number", viewonly=True)
