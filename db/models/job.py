from typing import TYPE_CHECKING

from sqlalchemy import CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.kinds import FILE_FIELDS, FILE_LISTS
from db.models.base import Base, CreatedAt, JSONObject, Timestamp, one_of
from db.states import JobKind, JobStatus

if TYPE_CHECKING:
    from db.models.step import Step


UNFINISHED = "status NOT IN ('succeeded', 'failed', 'cancelled')"


def _index_of_list(name: str) -> Index:
    return Index(f"ix_jobs_{name}", text(f"(params -> '{name}')"), postgresql_using="gin")


def _index_of_param(name: str) -> Index:
    path = name.split(".")
    value = f"params ->> '{name}'" if len(path) == 1 else f"params #>> '{{{','.join(path)}}}'::text[]"
    return Index(
        f"ix_jobs_{name.replace('.', '_')}", text(f"({value})"), postgresql_where=f"{value} IS NOT NULL"
    )


class Job(Base):
    """What a user asked for. `params` are the validated params of its kind, defaults filled in."""

    __tablename__ = "jobs"
    __table_args__ = (
        one_of("status", JobStatus),
        one_of("kind", JobKind),
        CheckConstraint("max_attempts >= 1", name="max_attempts"),
        CheckConstraint("max_runtime_seconds >= 1", name="max_runtime_seconds"),
        CheckConstraint(
            "(status IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished_at"
        ),
        Index("ix_jobs_project_id_id", "project_id", "id"),
        Index("ix_jobs_waits_for_job_id", "waits_for_job_id"),
        # The latest of a kind that succeeded, to learn from how long they took.
        Index("ix_jobs_succeeded", "kind", "id", postgresql_where="status = 'succeeded'"),
        # Few have not ended, however many there have been.
        Index("ix_jobs_unfinished", "project_id", "id", postgresql_where=UNFINISHED),
        # What ages out is walked in the order in which it ended.
        Index("ix_jobs_finished_at", "finished_at", "id", postgresql_where="finished_at IS NOT NULL"),
        # Whether an upload is still named.
        *map(_index_of_param, FILE_FIELDS),
        *map(_index_of_list, FILE_LISTS),
        Index(
            "ix_jobs_metadata", "metadata", postgresql_using="gin", postgresql_where="metadata IS NOT NULL"
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    status: Mapped[str] = mapped_column(default=JobStatus.QUEUED)
    params: Mapped[JSONObject]
    priority: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column(default=3)
    max_runtime_seconds: Mapped[int | None]  # all its attempts together
    webhook_url: Mapped[str | None]  # told when the job ends
    # A job that makes what this one needs, such as the weights of `tiny`.
    waits_for_job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    notes: Mapped[JSONObject | None] = mapped_column("metadata")  # `metadata` is SQLAlchemy's own
    cloned_from: Mapped[str | None]  # a job that may be gone by now
    # The weights it starts from, found when its first step starts, so that all steps see the same.
    base: Mapped[JSONObject | None]
    result: Mapped[JSONObject | None]
    error: Mapped[JSONObject | None]
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Timestamp | None]
    finished_at: Mapped[Timestamp | None]

    steps: Mapped[list["Step"]] = relationship(
        back_populates="job",
        order_by="Step.position",
        lazy="selectin",
        cascade="all, delete-orphan",
        passive_deletes=True,
    )
