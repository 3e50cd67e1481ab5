"""The one function that moves a job or a step from one state to another."""

from sqlalchemy import func
from sqlalchemy.orm import Session

from db.errors import Conflict
from db.models import Job, Step
from db.session import note_work
from db.states import ENDED_JOB, JOB_MOVES, STEP_MOVES, JobStatus, StepStatus

ENDED_STEP = frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.CANCELLED})


def move(session: Session, row: Job | Step, to: JobStatus | StepStatus) -> None:
    """Move `row`, which the caller has locked, and keep its times.

    Raises:
        Conflict: the move is not legal.
    """
    legal: frozenset[JobStatus] | frozenset[StepStatus]
    ended: frozenset[JobStatus] | frozenset[StepStatus]
    if isinstance(row, Job):
        legal, ended = JOB_MOVES[JobStatus(row.status)], ENDED_JOB
    else:
        legal, ended = STEP_MOVES[StepStatus(row.status)], ENDED_STEP
    if to not in legal:
        noun = type(row).__name__.lower()
        raise Conflict(f"A {row.status} {noun} cannot become {to}.", code="illegal_move")
    row.status = str(to)
    now = func.clock_timestamp()
    if to == JobStatus.RUNNING and row.started_at is None:
        row.started_at = now
    row.finished_at = now if to in ended else None
    if isinstance(row, Step) and to != StepStatus.RUNNING:
        row.lease_expires_at = None
        if to == StepStatus.QUEUED:
            note_work(session, row.queue)
    session.flush()
