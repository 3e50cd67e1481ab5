"""How an attempt ends, and what follows for its step and its job. One transaction each, under the fence."""

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.errors import Unavailable
from db.models import Artifact, Attempt, File, Job, Step
from db.queries.jobs import add_event, end_job, lock_steps, set_aside
from db.queries.states import move
from db.session import note_work
from db.states import ASKING_KINDS, DEVICE_QUEUES, JobKind, JobStatus, Outcome, StepStatus, steps_of
from db.storage import file_path
from worker.claim import Claim
from worker.publishing import compared, publish_version
from worker.step import Message

BACKOFF_MAX_SECONDS = 300
# Of a step's last words, those that tell why it could not be done.
CUT_SHORT = {"refused": Outcome.REFUSED, "unavailable": Outcome.LOST, "exhausted": Outcome.EXHAUSTED}


@dataclass(frozen=True)
class ArtifactFile:
    """A file that an attempt offers; `path` is relative to the storage root.

    Args:
        purpose: of the file that it is besides, under `file_id`, where it lies already.
    """

    name: str
    path: str
    bytes: int
    sha256: str
    purpose: str | None = None
    file_id: str | None = None


@dataclass(frozen=True)
class Ending:
    """How an attempt ended.

    Args:
        error: for other outcomes than done and released: {"code", "message", "param"}; when memory ran
            out, also "adjustments", with which the step is tried again.
        stderr: the end of what its processes printed.
        result: what a finished step returned.
        reason: why a released one was asked to stop.
        retry_seconds: until a released one may be tried again.
    """

    outcome: Outcome
    error: dict[str, Any] | None = None
    exit_code: int | None = None
    signal: int | None = None
    stderr: str = ""
    result: dict[str, Any] | None = None
    reason: str = ""
    retry_seconds: float = 0.0
    artifacts: list[ArtifactFile] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """What was written.

    Args:
        retry_seconds: until the step may be tried again, if it may.
        told: why it ended, unless it is done.
    """

    outcome: Outcome
    retry_seconds: float | None = None
    cancelled: bool = False
    told: str = ""


def error_row(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param}


def fallen(step: str, word: Message | None, exited: str, *, printed: str) -> dict[str, Any]:
    """The error of a step whose process ended badly: its own word, or how it ended.

    Args:
        printed: of which the last line is told where it had no word.
    """
    if word is not None and word["type"] == "failed":
        return error_row(word["code"], f"Step {step}: {word['message']}", word["param"])
    line = "".join(f": {each[:500]}" for each in printed.strip().splitlines()[-1:])
    return error_row("step_failed", f"Step {step} ended by {exited}{line}")


def max_runtime_exceeded(claim: Claim) -> dict[str, Any]:
    message = (
        f"The job has run for its max_runtime_seconds of {claim.max_runtime_seconds}. A retry with a "
        f"larger one goes on from what step {claim.step} has saved: POST /v1/jobs/{claim.job_id}/retry, "
        f"or `lathe retry {claim.job_id} --max-runtime SECONDS`."
    )
    return error_row("max_runtime_exceeded", message)


def put_off(error: Unavailable) -> Ending:
    """For a step that needs somebody who is away: until when, if that is known; else as one that was lost."""
    if error.retry_after_seconds is None:
        return Ending(Outcome.LOST, error=error_row(error.code, error.message, error.param))
    return Ending(Outcome.RELEASED, reason=error.message, retry_seconds=error.retry_after_seconds)


def end_attempt(session: Session, job: Job, step: Step, ending: Ending) -> Ended:
    """End the current attempt of `step`, and move the step and the job on.

    Args:
        job, step: both locked by the caller; the step runs.
    """
    cancelled = job.status == JobStatus.CANCELLING
    if cancelled:
        # Of what is handed back; what a step came to that was done by then is no result of the job.
        keeps = job.kind in ASKING_KINDS and ending.outcome == Outcome.RELEASED
        kept = ending if keeps else Ending(Outcome.RELEASED)
        ending = replace(
            kept, outcome=Outcome.RELEASED, stderr=ending.stderr, signal=ending.signal, error=None
        )
    _write_ending(session, job, step, ending)
    if cancelled:
        if job.kind in ASKING_KINDS:  # it may have been claimed where answers are only written
            step.queue = str(dict(steps_of(JobKind(job.kind), job.params))[step.name])
        step.result = ending.result
        _register_files(session, job, step, ending.artifacts)
        move(session, step, StepStatus.CANCELLED)
        end_job(session, job, JobStatus.CANCELLED, result=step.result)
        return Ended(ending.outcome, cancelled=True)
    delay = _move_on(session, job, step, ending)
    if job.status == JobStatus.PAUSING:
        set_aside(session, job)
    return Ended(ending.outcome, delay, told=ending.error["message"] if ending.error else ending.reason)


def _move_on(session: Session, job: Job, step: Step, ending: Ending) -> float | None:
    """Move the step on, and a job that ends with it. Gives the seconds until a lost step is tried again."""
    if ending.outcome == Outcome.DONE:
        _go_on(session, job, step, ending)
    elif ending.outcome == Outcome.RELEASED:
        return _hand_back(session, job, step, ending)
    elif ending.outcome == Outcome.EXHAUSTED and ending.error and ending.error.get("adjustments"):
        _try_with_less(session, job, step, ending.error)
    else:
        step.failures += 1
        if ending.outcome == Outcome.LOST and step.failures < job.max_attempts:
            return _try_again(session, job, step, ending)
        _fail(session, job, step, ending)
    return None


def _hand_back(session: Session, job: Job, step: Step, ending: Ending) -> float | None:
    delay = ending.retry_seconds
    step.not_before = func.clock_timestamp() + timedelta(seconds=delay) if delay else None
    move(session, step, StepStatus.QUEUED)
    reason = f": {ending.reason}" if ending.reason else ""
    _say(session, job, step, f"Step {step.name} was handed back{reason}.")
    return delay or None


def _write_ending(session: Session, job: Job, step: Step, ending: Ending) -> None:
    query = select(Attempt).where(Attempt.step_id == step.id, Attempt.number == step.attempt)
    attempt = session.scalars(query).one()
    attempt.ended_at = func.clock_timestamp()
    attempt.outcome = str(ending.outcome)
    attempt.exit_code, attempt.signal = ending.exit_code, ending.signal
    attempt.stderr, attempt.error = ending.stderr or None, ending.error
    if attempt.queue in DEVICE_QUEUES and attempt.devices:
        for queue in DEVICE_QUEUES:
            note_work(session, queue)  # they are free for whatever waits


def _go_on(session: Session, job: Job, step: Step, ending: Ending) -> None:
    """Keep what the step made, and queue the next one, or finish the job."""
    step.result, step.succeeded_attempt = ending.result or {}, step.attempt
    if job.base is not None and "base_revision" in step.result:
        # A hub's branch may move on while the job runs: all its steps, and exports of it, take one commit.
        job.base = {**job.base, "revision": step.result["base_revision"]}
    if job.base is not None and "merge_base_revision" in step.result:
        merged = {**job.base["merge_base"], "revision": step.result["merge_base_revision"]}
        job.base = {**job.base, "merge_base": merged}
    _register_artifacts(session, job, step, ending.artifacts)
    _register_files(session, job, step, ending.artifacts)
    move(session, step, StepStatus.SUCCEEDED)
    _say(session, job, step, f"Step {step.name} is done.", data={"status": step.status})
    steps = lock_steps(session, job)
    following = next((row for row in steps if row.position > step.position), None)
    if following is not None:
        # A step may know better than the table of kinds where what follows it is best done.
        following.queue = step.result.get("next_queue", following.queue)
        move(session, following, StepStatus.QUEUED)
        return
    if step.name == "publish":
        result = publish_version(session, job, steps)
    else:  # of a reward model nothing is published
        result = step.result | compared(session, job, {row.name: row for row in steps})
    end_job(session, job, JobStatus.SUCCEEDED, result=result)


def _register_artifacts(session: Session, job: Job, step: Step, files: list[ArtifactFile]) -> None:
    for file in files:
        values = {
            "step": step.name,
            "attempt": step.attempt,
            "path": file.path,
            "bytes": file.bytes,
            "sha256": file.sha256,
        }
        statement = insert(Artifact).values(job_id=job.id, name=file.name, **values)
        session.execute(
            statement.on_conflict_do_update(index_elements=[Artifact.job_id, Artifact.name], set_=values)
        )


def _register_files(session: Session, job: Job, step: Step, artifacts: list[ArtifactFile]) -> None:
    """Make files of what is to be one, and name them in the step's result."""
    seconds = job.params.get("output_expires_after_seconds")
    files = [
        File(
            id=each.file_id,
            project_id=job.project_id,
            purpose=each.purpose,
            filename=each.name,
            bytes=each.bytes,
            sha256=each.sha256,
            path=file_path(each.file_id),
            expires_at=func.clock_timestamp() + timedelta(seconds=seconds) if seconds else None,
        )
        for each in artifacts
        if each.file_id is not None
    ]
    if files:
        session.add_all(files)
        named = {file.filename: file.id for file in files}
        step.result = {**(step.result or {}), "result_files": list(named.values()), "files": named}


def _try_again(session: Session, job: Job, step: Step, ending: Ending) -> float:
    """Queue the step again: at once after the first loss, then after 2, 4, 8 … seconds."""
    delay = 0.0 if step.failures == 1 else min(float(BACKOFF_MAX_SECONDS), 2.0 ** (step.failures - 1))
    step.not_before = func.clock_timestamp() + timedelta(seconds=delay) if delay else None
    move(session, step, StepStatus.QUEUED)
    when = f"in {delay:.0f} s" if delay else "at once"
    reason = ending.error["message"] if ending.error else "It was lost."
    left = job.max_attempts - step.failures
    _say(
        session,
        job,
        step,
        f"{reason} Trying again {when}; {left} more {'try' if left == 1 else 'tries'}.",
        level="warn",
    )
    return delay


def _try_with_less(session: Session, job: Job, step: Step, error: dict[str, Any]) -> None:
    """Queue the step again, to be done as its attempt said for the case that memory runs out."""
    move(session, step, StepStatus.QUEUED)
    told = " and ".join(f"{name} {json.dumps(value)}" for name, value in error["adjustments"].items())
    message = f"{error['message']} Trying again with {told}."
    _say(session, job, step, message, level="warn", data={"adjustments": error["adjustments"]})


def _fail(session: Session, job: Job, step: Step, ending: Ending) -> None:
    move(session, step, StepStatus.FAILED)
    error = {
        **(ending.error or {"code": "step_failed", "message": f"Step {step.name} failed.", "param": None}),
        "step": step.name,
        "attempt": step.attempt,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "stderr": ending.stderr or None,
    }
    end_job(session, job, JobStatus.FAILED, error=error)


def _say(
    session: Session,
    job: Job,
    step: Step,
    message: str,
    *,
    level: str = "info",
    data: dict[str, Any] | None = None,
) -> None:
    add_event(session, job.id, message, level=level, step=step.name, attempt=step.attempt, data=data)
