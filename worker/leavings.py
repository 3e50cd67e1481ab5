"""What dead attempts leave on the disk: of those that may be gone on from, as many checkpoints as the job's
`keep_checkpoints` says, over all attempts of the step; of others nothing.

The rows of checkpoints follow the files: a row goes once its folder is gone.
"""

import contextlib
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import ColumnElement, and_, delete, exists, func, not_, or_, select
from sqlalchemy.orm import Session

from db.models import Attempt, Checkpoint, Job, Step
from db.session import SessionFactory, transaction
from db.states import ASKING_KINDS, ENDED_JOB, JobStatus, Outcome, StepStatus
from db.storage import attempt_folder
from worker.checkpoints import keep_only_checkpoints, list_checkpoints, superfluous

# A refused one too: what it took over may be all that there is, and a retry goes on from it.
RESUMABLE = (Outcome.LOST, Outcome.RELEASED, Outcome.EXHAUSTED, Outcome.REFUSED)
# Of a job that is being cancelled, what it was answered is yet to be written.
CANCELLED = or_(
    Job.status == JobStatus.CANCELLED,
    and_(Job.status == JobStatus.CANCELLING, Job.kind.not_in(ASKING_KINDS)),
)


@dataclass(frozen=True)
class DeadAttempt:
    """An attempt without a result. `resumable`: a later one of its step may go on from its checkpoints."""

    job_id: str
    step: str
    number: int
    host: str
    resumable: bool


def dead_attempts(session: Session, which: ColumnElement[bool]) -> Sequence[DeadAttempt]:
    resumable = and_(Attempt.outcome.in_(RESUMABLE), Step.status != StepStatus.SUCCEEDED, not_(CANCELLED))
    query = (
        select(Step.job_id, Step.name, Attempt.number, Attempt.host, resumable)
        .join(Step, Step.id == Attempt.step_id)
        .join(Job, Job.id == Step.job_id)
        .where(Attempt.outcome != Outcome.DONE, which)
    )
    return [DeadAttempt(*row) for row in session.execute(query)]


def ended_within(time: timedelta) -> ColumnElement[bool]:
    # No index can be asked for what `clock_timestamp()`, which changes meanwhile, is compared with.
    return Attempt.ended_at > func.now() - time


def no_longer_of_use(within: timedelta | None) -> ColumnElement[bool]:
    """That checkpoints are kept of it, and its step has succeeded or its job was cancelled since.

    Args:
        within: of jobs that have not ended, or not for longer than this, which an index finds; None: of any.
    """
    kept = exists().where(Checkpoint.job_id == Step.job_id, Checkpoint.attempt == Attempt.number)
    # A job of several steps has attempts of the same number; only those of its own step are looked at.
    own = Checkpoint.path.startswith(func.concat("jobs/", Step.job_id, "/", Step.name, "/"))
    of_no_use = or_(Step.status == StepStatus.SUCCEEDED, CANCELLED)
    if within is None:
        return and_(kept.where(own), of_no_use)
    lately = or_(Job.status.not_in(ENDED_JOB), Job.finished_at > func.now() - within)
    return and_(kept.where(own), of_no_use, lately)


def remove_leavings(factory: SessionFactory, root: Path, which: ColumnElement[bool]) -> None:
    """Remove what need not be kept of the steps that have a dead attempt which `which` selects."""
    with transaction(factory) as session:
        steps = _steps_with_dead_attempts(session, which)
        dead = dead_attempts(session, Attempt.step_id.in_(steps)) if steps else []
        rotated = _rotations(session, steps) if any(attempt.resumable for attempt in dead) else []
    for rotation in rotated:
        for checkpoint in rotation.superfluous(root):
            shutil.rmtree(checkpoint, ignore_errors=True)
    for attempt in dead:
        folder = attempt_folder(root, attempt.job_id, attempt.step, attempt.number)
        if not attempt.resumable:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with contextlib.suppress(FileNotFoundError):  # somebody else removes it at this moment
            keep_only_checkpoints(folder)
    if dead:
        with transaction(factory) as session:
            _forget_checkpoints(session, dead, root)


@dataclass(frozen=True)
class Rotation:
    """A step that may be gone on with.

    Args:
        attempts: oldest first, the number of each and that of the checkpoint which it went on from.
        running: the number of the one that runs now.
    """

    job_id: str
    step: str
    keep: int
    attempts: list[tuple[int, int | None]]
    running: int | None

    def superfluous(self, root: Path) -> list[Path]:
        """The dead attempts' checkpoints that are not to stay. A running attempt rotates its own; before it
        has any, it may still read each of theirs."""
        folders = {
            number: attempt_folder(root, self.job_id, self.step, number) for number, _ in self.attempts
        }
        running = folders[self.running] if self.running is not None else None
        if running is not None and not list_checkpoints(running):
            return []
        attempts = [(folders[number], resumed_from) for number, resumed_from in self.attempts]
        return [path for path in superfluous(attempts, self.keep) if running not in path.parents]


def _steps_with_dead_attempts(session: Session, which: ColumnElement[bool]) -> set[int]:
    query = (
        select(Attempt.step_id)
        .join(Step, Step.id == Attempt.step_id)
        .join(Job, Job.id == Step.job_id)
        .where(Attempt.outcome != Outcome.DONE, which)
    )
    return set(session.scalars(query))


def _rotations(session: Session, steps: Collection[int]) -> list[Rotation]:
    query = (
        select(Step, Job.params)
        .join(Job, Job.id == Step.job_id)
        .where(Step.id.in_(steps), Step.status != StepStatus.SUCCEEDED)
    )
    rotations = []
    for step, params in session.execute(query):
        of_step = select(Attempt.number, Attempt.resumed_from).where(Attempt.step_id == step.id)
        rotations.append(
            Rotation(
                job_id=step.job_id,
                step=step.name,
                keep=params.get("keep_checkpoints", 2),
                attempts=[(row[0], row[1]) for row in session.execute(of_step.order_by(Attempt.number))],
                running=step.attempt if step.status == StepStatus.RUNNING else None,
            )
        )
    return rotations


def _forget_checkpoints(session: Session, dead: Sequence[DeadAttempt], root: Path) -> None:
    folders = {f"jobs/{attempt.job_id}/{attempt.step}/{attempt.number}" for attempt in dead}
    query = select(Checkpoint.id, Checkpoint.path).where(
        Checkpoint.job_id.in_({attempt.job_id for attempt in dead})
    )
    gone = [
        row.id
        for row in session.execute(query)
        if "/".join(row.path.split("/")[:4]) in folders and not (root / row.path).is_dir()
    ]
    if gone:
        session.execute(delete(Checkpoint).where(Checkpoint.id.in_(gone)))
