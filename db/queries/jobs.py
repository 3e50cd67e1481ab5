"""Making, finding, listing and ending jobs.

Who locks several rows takes them in one order, so that nobody waits in a circle: model, job, step, and last
the project, where that has limits. The locks are FOR NO KEY UPDATE, which lets others insert events of a
locked job.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from db.errors import Conflict, NotFound
from db.ids import new_id
from db.models import Artifact, Event, Job, Step
from db.queries.deliveries import queue_deliveries
from db.queries.documents import forget_passwords
from db.queries.paging import page_of
from db.queries.states import ENDED_STEP, move
from db.session import clock, insert_rows, note_events, note_work
from db.states import (
    ASKING_KINDS,
    ENDED_JOB,
    JobKind,
    JobStatus,
    Queue,
    StepStatus,
    how_ended,
    steps_of,
)

# What a job may be while it waits for another.
NOT_STARTED = (JobStatus.QUEUED, JobStatus.PAUSED)


def create_job(session: Session, *, project_id: str, **columns: Any) -> Job:
    """Insert a job as `insert_job` does, and get it, for who goes on with it."""
    return get_job(session, insert_job(session, project_id=project_id, **columns).id, project_id=project_id)


def insert_job(
    session: Session,
    *,
    project_id: str,
    kind: JobKind,
    params: dict[str, Any],
    priority: int = 0,
    max_attempts: int = 3,
    max_runtime_seconds: int | None = None,
    waits_for_job_id: str | None = None,
    webhook_url: str | None = None,
    notes: dict[str, str] | None = None,
    cloned_from: str | None = None,
) -> Job:
    """Insert a job and its steps. The first step may be claimed at once, unless another job comes first.

    Returns:
        The job as its rows are now, outside of the session.
    """
    job = {
        "id": new_id("job"),
        "project_id": project_id,
        "kind": str(kind),
        "status": str(JobStatus.QUEUED),
        "params": params,
        "priority": priority,
        "max_attempts": max_attempts,
        "max_runtime_seconds": max_runtime_seconds,
        "waits_for_job_id": waits_for_job_id,
        "webhook_url": webhook_url,
        "cloned_from": cloned_from,
        "created_at": clock(session),
    }
    steps: list[dict[str, Any]] = [
        {
            "job_id": job["id"],
            "name": name,
            "position": position,
            "queue": str(queue),
            "status": str(StepStatus.PENDING),
            "attempt": 0,
            "failures": 0,
        }
        for position, (name, queue) in enumerate(steps_of(kind, params))
    ]
    if waits_for_job_id is None:
        steps[0]["status"] = str(StepStatus.QUEUED)
        note_work(session, steps[0]["queue"])
    insert_rows(session, Job, [{**job, "metadata": notes}])
    insert_rows(session, Step, steps)
    return Job(**job, notes=notes, steps=[Step(**step) for step in steps])


def get_job(session: Session, job_id: str, *, project_id: str, lock: bool = False) -> Job:
    """Find one job of a project.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(Job).where(Job.id == job_id, Job.project_id == project_id)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    job = session.scalars(query).one_or_none()
    if job is None:
        raise NotFound(f"There is no job {job_id!r}.", param="id")
    return job


def lock_steps(session: Session, job: Job) -> list[Step]:
    """Lock the steps of a job that is locked already, and read them anew."""
    query = select(Step).where(Step.job_id == job.id).order_by(Step.position)
    query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return list(session.scalars(query))


def cancel_job(session: Session, job_id: str, *, project_id: str) -> Job:
    """Cancel a job: at once when nothing of it runs, else its worker ends its processes and the job.

    One that has answers to write is left to a worker too, which does that before it ends.

    Cancelling twice is the same as once.

    Raises:
        NotFound: there is none by that id.
        Conflict: it has succeeded or failed.
    """
    job = get_job(session, job_id, project_id=project_id, lock=True)
    if job.status in (JobStatus.CANCELLING, JobStatus.CANCELLED):
        return job
    if job.status in ENDED_JOB:
        ended = how_ended(job.status)
        raise Conflict(f"The job {ended} already: there is nothing to cancel.", code="job_ended")
    steps = lock_steps(session, job)
    if any(step.status == StepStatus.RUNNING for step in steps):
        move(session, job, JobStatus.CANCELLING)
        add_event(session, job.id, "Cancelling: the running step is being ended.")
    elif (step := _with_answers(job, steps)) is not None:
        move(session, job, JobStatus.CANCELLING)
        # Its own queue may be busy for hours, to which it goes back once it has ended.
        step.queue, step.not_before = str(Queue.IO), None
        note_work(session, step.queue)
        add_event(session, job.id, "Cancelling: what was answered until now is being written.")
    else:
        end_job(session, job, JobStatus.CANCELLED)
    return job


def _with_answers(job: Job, steps: Sequence[Step]) -> Step | None:
    """The waiting step of a job that has been asking a model, and may have answers to write."""
    if job.kind not in ASKING_KINDS or not any(step.name == "ask" and step.attempt for step in steps):
        return None
    waiting = (step for step in steps if step.status == StepStatus.QUEUED and step.name in ("ask", "write"))
    return next(waiting, None)


def pause_job(session: Session, job_id: str, *, project_id: str) -> Job:
    """Put a job aside: at once when nothing of it runs, else once its step has saved what it has.

    Pausing twice is the same as once.

    Raises:
        NotFound: there is none by that id.
        Conflict: it has ended, or is being cancelled.
    """
    job = get_job(session, job_id, project_id=project_id, lock=True)
    if job.status in (JobStatus.PAUSING, JobStatus.PAUSED):
        return job
    _refuse_unless_going_on(job, "pause")
    running = next((step for step in lock_steps(session, job) if step.status == StepStatus.RUNNING), None)
    if running is not None:
        move(session, job, JobStatus.PAUSING)
        message = f"Pausing: step {running.name} is asked to save what it has and to stop."
        add_event(session, job.id, message, data={"status": job.status})
    else:
        set_aside(session, job)
    return job


def set_aside(session: Session, job: Job) -> None:
    """Let a locked job of which nothing runs be paused."""
    move(session, job, JobStatus.PAUSED)
    add_event(session, job.id, "Paused.", data={"status": job.status})


def resume_job(session: Session, job_id: str, *, project_id: str) -> Job:
    """Let a paused job go on, also one whose step has not stopped yet. Of any other nothing changes.

    Raises:
        NotFound: there is none by that id.
        Conflict: it has ended, or is being cancelled.
    """
    job = get_job(session, job_id, project_id=project_id, lock=True)
    _refuse_unless_going_on(job, "resume")
    if job.status not in (JobStatus.PAUSING, JobStatus.PAUSED):
        return job
    steps = lock_steps(session, job)
    # A step that was asked to stop does so all the same, and is then claimed again.
    move(session, job, JobStatus.RUNNING if job.status == JobStatus.PAUSING else JobStatus.QUEUED)
    add_event(session, job.id, "Resumed.", data={"status": job.status})
    for step in steps:
        if step.status == StepStatus.QUEUED:
            note_work(session, step.queue)
    return job


def _refuse_unless_going_on(job: Job, verb: str) -> None:
    if job.status == JobStatus.CANCELLING:
        raise Conflict(f"The job is being cancelled: there is nothing to {verb}.", code="job_cancelling")
    if job.status in ENDED_JOB:
        ended = how_ended(job.status)
        again = "" if job.status == JobStatus.SUCCEEDED else " …/retry lets it go on."
        raise Conflict(f"The job {ended}: there is nothing to {verb}.{again}", code="job_ended")


def end_job(
    session: Session,
    job: Job,
    status: JobStatus,
    *,
    error: dict[str, Any] | None = None,
    result: dict[str, Any] | None = None,
) -> None:
    """End a locked job: its unfinished steps never run, jobs that waited for it go on or fail, and webhooks
    tell of it.

    A step that still runs is the caller's to end first.
    """
    move(session, job, status)
    job.error, job.result = error, result
    for step in lock_steps(session, job):
        if step.status not in ENDED_STEP:
            move(session, step, StepStatus.CANCELLED)
    message = f"The job {how_ended(status)}"
    add_event(
        session,
        job.id,
        f"{message}: {error['message']}" if error else f"{message}.",
        level="error" if error else "info",
        data={"status": str(status)},
    )
    if job.kind == JobKind.INGEST:
        forget_passwords(session, job.id)
    queue_deliveries(session, job)
    _answer_waiting_jobs(session, job)


def _answer_waiting_jobs(session: Session, ended: Job) -> None:
    query = select(Job).where(Job.waits_for_job_id == ended.id, Job.status.in_(NOT_STARTED))
    query = query.order_by(Job.id).with_for_update(key_share=True)
    for job in session.scalars(query.execution_options(populate_existing=True)).all():
        if ended.status == JobStatus.SUCCEEDED:
            first = lock_steps(session, job)[0]
            if first.status == StepStatus.PENDING:
                move(session, first, StepStatus.QUEUED)
            continue
        how = "was cancelled" if ended.status == JobStatus.CANCELLED else "failed"
        error = {
            "code": "awaited_job_ended",
            "message": f"Job {ended.id}, which was to make what this job needs, {how}.",
            "param": None,
            "job_id": ended.id,
        }
        end_job(session, job, JobStatus.FAILED, error=error)


def list_jobs(
    session: Session,
    *,
    project_id: str,
    kind: str | None = None,
    status: str | None = None,
    notes: dict[str, str] | None = None,
    without_notes: bool = False,
    after: str | None = None,
    limit: int = 20,
) -> tuple[list[Job], bool]:
    """One page of jobs, newest first, and whether there are more; `notes`: only those that have all these."""
    query = select(Job).where(Job.project_id == project_id)
    if kind is not None:
        query = query.where(Job.kind == kind)
    if status is not None:
        query = query.where(Job.status == status)
    if notes:
        query = query.where(Job.notes.is_not(None), Job.notes.contains(notes))
    if without_notes:
        query = query.where(or_(Job.notes.is_(None), Job.notes == {}))
    return page_of(session, query, Job.id, after=after, limit=limit)


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
    """Let a job say something.

    Args:
        job_id: of a job of which the caller has locked the step that runs, or the job itself if none does.
            So a job's events are committed in the order of their numbers, and who reads on from the newest
            misses none.
    """
    session.add(
        Event(job_id=job_id, type=type, level=level, message=message, step=step, attempt=attempt, data=data)
    )
    note_events(session, job_id)


def list_events(
    session: Session,
    job_id: str,
    *,
    type: str | None = None,
    after: int = 0,
    limit: int = 100,
    newest_first: bool = False,
) -> tuple[list[Event], bool]:
    """One page of a job's events, oldest first unless asked otherwise, and whether there are more."""
    query = select(Event).where(Event.job_id == job_id)
    if type is not None:
        query = query.where(Event.type == type)
    return page_of(session, query, Event.id, after=after or None, limit=limit, ascending=not newest_first)


def newest_events(session: Session, job_id: str, *, limit: int) -> list[Event]:
    """The last events of a job, oldest first."""
    query = select(Event).where(Event.job_id == job_id).order_by(Event.id.desc()).limit(limit)
    return list(session.scalars(query))[::-1]


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
