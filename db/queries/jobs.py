"""Making, finding and listing jobs."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.ids import new_id
from db.models import Artifact, Event, Job, Step
from db.states import STEPS, JobKind, StepStatus


def create_job(
    session: Session,
    *,
    project_id: str,
    kind: JobKind,
    params: dict[str, Any],
    priority: int = 0,
    max_attempts: int = 3,
    waits_for_job_id: str | None = None,
) -> Job:
    """Insert a job and its steps. The first step may be claimed at once, unless another job comes first."""
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        kind=str(kind),
        params=params,
        priority=priority,
        max_attempts=max_attempts,
        waits_for_job_id=waits_for_job_id,
    )
    for position, (name, queue) in enumerate(STEPS[kind]):
        ready = position == 0 and waits_for_job_id is None
        job.steps.append(
            Step(
                name=name,
                position=position,
                queue=str(queue),
                status=str(StepStatus.QUEUED if ready else StepStatus.PENDING),
            )
        )
    session.add(job)
    session.flush()
    return job


def get_job(session: Session, job_id: str, *, project_id: str, lock: bool = False) -> Job:
    """Find one job of a project.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(Job).where(Job.id == job_id, Job.project_id == project_id)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    job = session.scalars(query).one_or_none()
    if job is None:
        raise NotFound(f"There is no job {job_id!r}.", param="id")
    return job


def list_jobs(
    session: Session,
    *,
    project_id: str,
    kind: str | None = None,
    status: str | None = None,
    after: str | None = None,
    limit: int = 20,
) -> tuple[list[Job], bool]:
    """One page of jobs, newest first, and whether there are more."""
    query = select(Job).where(Job.project_id == project_id).order_by(Job.id.desc()).limit(limit + 1)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if status is not None:
        query = query.where(Job.status == status)
    if after is not None:
        query = query.where(Job.id < after)
    jobs = list(session.scalars(query))
    return jobs[:limit], len(jobs) > limit


def add_event(
    session: Session,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    step: str | None = None,
    attempt: int | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    session.add(
        Event(job_id=job_id, type=type, level=level, message=message, step=step, attempt=attempt, data=data)
    )


def list_events(
    session: Session,
    job_id: str,
    *,
    type: str | None = None,
    after: int = 0,
    limit: int = 100,
) -> tuple[list[Event], bool]:
    """One page of a job's events, oldest first, and whether there are more."""
    query = select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit + 1)
    if type is not None:
        query = query.where(Event.type == type)
    events = list(session.scalars(query))
    return events[:limit], len(events) > limit


def list_artifacts(session: Session, job_id: str) -> list[Artifact]:
    return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.id)))


def get_artifact(session: Session, job_id: str, name: str) -> Artifact:
    """Find one artifact of a job by its name.

    Raises:
        NotFound: the job has none by that name; the message lists those it has.
    """
    query = select(Artifact).where(Artifact.job_id == job_id, Artifact.name == name)
    artifact = session.scalars(query).one_or_none()
    if artifact is None:
        known = ", ".join(row.name for row in list_artifacts(session, job_id)) or "none yet"
        raise NotFound(f"This job has no artifact {name!r}. It has: {known}.", param="name")
    return artifact
