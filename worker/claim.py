"""Claiming: which step a worker runs next, in one statement by the order of `db.queries.line`."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, text
from sqlalchemy.orm import Session

from db.models import Attempt, AttemptDevice, Device, Job, Step
from db.queries.jobs import add_event
from db.queries.line import BROKEN_OFF, ELIGIBLE, LINE
from db.queries.runtime import runtime_seconds
from db.queries.states import move
from db.states import JobStatus, Queue, StepStatus
from worker.clock import host_seconds
from worker.delivery_claim import has_due_delivery

# How far the line is formed: more than will ever be held by others who claim at the same moment.
CLAIM_DEPTH = 64
# SKIP LOCKED on both rows: a claim waits for nobody, and no two see the same step as free. Whether a step is
# eligible is asked of its locked rows once more: others may have changed them since the line was formed.
BEST_STEP = text(
    f"""
    {LINE}
    SELECT steps.id AS step_id, jobs.id AS job_id
    FROM line JOIN steps ON steps.id = line.step_id JOIN jobs ON jobs.id = line.job_id
    WHERE line.place <= :depth AND {ELIGIBLE}
    ORDER BY line.place
    LIMIT 1
    FOR NO KEY UPDATE OF steps, jobs SKIP LOCKED
    """  # noqa: S608 - put together from constants
)
BEGIN = text(
    "UPDATE steps SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease), "
    "progressed_at = clock_timestamp(), progress = NULL, not_before = NULL WHERE id = :id"
)
HAS_WORK = text(
    "SELECT EXISTS (SELECT FROM steps JOIN jobs ON jobs.id = steps.job_id "  # noqa: S608
    f"WHERE steps.queue = :queue AND {ELIGIBLE})"
)
QUEUES_WITH_WORK = text(
    f"SELECT DISTINCT steps.queue FROM steps JOIN jobs ON jobs.id = steps.job_id WHERE {ELIGIBLE}"  # noqa: S608
)
# Of the queues that wait for one device: the order of their best steps, by priority, who was broken off, age.
FIRST_QUEUES = text(
    "SELECT steps.queue FROM steps JOIN jobs ON jobs.id = steps.job_id "  # noqa: S608
    f"WHERE steps.queue = ANY(:queues) AND {ELIGIBLE} "
    f"GROUP BY steps.queue ORDER BY min(ARRAY[-jobs.priority, CAST(NOT ({BROKEN_OFF}) AS integer), steps.id])"
)


@dataclass(frozen=True)
class Claim:
    """One attempt that is ours while its lease lasts.

    Args:
        deadline: by `host_seconds`; a little before the lease ends by the database's clock.
        runs_until: when the job will have run for its `max_runtime_seconds`, by `host_seconds`.
        device_ids: the devices that the attempt holds until it ends.
        cancelling: nothing is to be run; what the job has is to be written before it ends.
    """

    job_id: str
    project_id: str
    kind: str
    step_id: int
    step: str
    queue: str
    attempt: int
    deadline: float
    max_runtime_seconds: int | None = None
    runs_until: float = math.inf
    device_ids: tuple[str, ...] = ()
    cancelling: bool = False

    @property
    def marker(self) -> str:
        return attempt_marker(self.job_id, self.step, self.attempt)


def attempt_marker(job_id: str, step: str, attempt: int) -> str:
    """What the processes of an attempt bear in their environment."""
    return f"{job_id}/{step}/{attempt}"


def claim_step(
    session: Session,
    queue: str,
    *,
    worker: str,
    host: str,
    lease_seconds: float,
    worker_process: str | None = None,
    device_ids: Sequence[str] = (),
) -> Claim | None:
    """Take the best eligible step of `queue`, and open its next attempt. None when there is none.

    Args:
        worker_process: by `worker.identity`; without it nobody can prove that the worker is dead.
        device_ids: for the attempt to hold; the caller has taken them.
    """
    asked_at = host_seconds()
    best: Row[tuple[int, str]] | None = session.execute(
        BEST_STEP, {"queue": queue, "depth": CLAIM_DEPTH}
    ).one_or_none()
    if best is None:
        return None
    job, step = session.get_one(Job, best.job_id), session.get_one(Step, best.step_id)
    if job.status == JobStatus.QUEUED:
        move(session, job, JobStatus.RUNNING)
    move(session, step, StepStatus.RUNNING)
    step.attempt += 1
    session.execute(BEGIN, {"lease": lease_seconds, "id": step.id})
    runs_until = _runs_until(session, job, asked_at)
    attempt = Attempt(step_id=step.id, number=step.attempt, worker=worker, host=host)
    attempt.project_id, attempt.queue, attempt.worker_process = job.project_id, queue, worker_process
    session.add(attempt)
    session.flush()
    session.add_all(AttemptDevice(attempt_id=attempt.id, device_id=each, open=True) for each in device_ids)
    cancelling = job.status == JobStatus.CANCELLING
    if not cancelling:
        _say_that_it_starts(session, step, device_ids)
    session.flush()
    return Claim(
        job_id=job.id,
        project_id=job.project_id,
        kind=job.kind,
        step_id=step.id,
        step=step.name,
        queue=queue,
        attempt=step.attempt,
        deadline=asked_at + lease_seconds,
        max_runtime_seconds=job.max_runtime_seconds,
        runs_until=runs_until,
        device_ids=tuple(device_ids),
        cancelling=cancelling,
    )


def _runs_until(session: Session, job: Job, now: float) -> float:
    """Before the attempt that begins is counted."""
    if job.max_runtime_seconds is None:
        return math.inf
    return now + job.max_runtime_seconds - runtime_seconds(session, job.id)


def say(session: Session, claim: Claim, message: str, *, level: str = "info", **data: Any) -> None:
    """Tell the job's user something of this attempt."""
    step, attempt = claim.step, claim.attempt
    add_event(session, claim.job_id, message, level=level, step=step, attempt=attempt, data=data or None)


def _say_that_it_starts(session: Session, step: Step, device_ids: Sequence[str]) -> None:
    held = select(Device).where(Device.id.in_(device_ids)).order_by(Device.index)
    devices = session.scalars(held).all() if device_ids else []
    named = ", ".join(f"GPU {device.index} ({device.name})" for device in devices)
    where = f" on {named}" if named else ""
    again = f" (attempt {step.attempt})" if step.attempt > 1 else ""
    add_event(
        session,
        step.job_id,
        f"Step {step.name} starts{where}{again}.",
        step=step.name,
        attempt=step.attempt,
        data={"status": step.status},
    )


def first_queues(session: Session, queues: Collection[str]) -> list[str]:
    """Those of `queues` that have work, the one with the most urgent step first, else with the oldest."""
    return list(session.scalars(FIRST_QUEUES, {"queues": list(queues)}))


def has_work(session: Session, queue: str) -> bool:
    """Whether a step of `queue` could be claimed now."""
    return session.scalars(HAS_WORK, {"queue": queue}).one()


def queues_with_work(session: Session) -> set[str]:
    """The queues on which a step, or a delivery, could be claimed now."""
    queues = set(session.scalars(QUEUES_WITH_WORK))
    return queues | {str(Queue.HOOKS)} if has_due_delivery(session) else queues
