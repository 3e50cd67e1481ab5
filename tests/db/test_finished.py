"""What estimates are learnt from: jobs that have succeeded, undisturbed."""

from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.models import Attempt, AttemptDevice, Device, Job
from db.queries.finished import finished_fine_tunes, finished_quantizations
from db.queries.jobs import end_job
from db.queries.states import move
from db.states import JobKind, JobStatus, StepStatus
from tests.rows import add_job

DEVICES = ("GPU-1", "GPU-2")
TRAINED = {"tokens_per_second": 12.5, "trained_tokens": 100, "adjustments": {}}


def finish(
    session: Session, *, trained: dict[str, Any] = TRAINED, resumed_from: int | None = None, ok: bool = True
) -> Job:
    """A fine-tune each of whose steps took ten seconds; `train` on the devices."""
    params = {"base_model": "tiny", "training_file": "file-1", "name": "x"}
    job = add_job(session, kind=JobKind.FINE_TUNE, params=params)
    results = {"prepare": {"estimate": {"fits": True}}, "train": trained}
    return succeed(session, job, results, main="train", resumed_from=resumed_from, ok=ok)


def succeed(
    session: Session,
    job: Job,
    results: dict[str, Any],
    *,
    main: str,
    resumed_from: int | None = None,
    ok: bool = True,
) -> Job:
    move(session, job, JobStatus.RUNNING)
    for row in job.steps:
        if row.status == StepStatus.PENDING:
            move(session, row, StepStatus.QUEUED)
        move(session, row, StepStatus.RUNNING)
        row.attempt = row.succeeded_attempt = 1
        row.result = results.get(row.name, {})
        attempt = Attempt(step_id=row.id, number=1, worker="w", host="h", outcome="done")
        attempt.project_id, attempt.queue = job.project_id, row.queue
        if row.name == main:
            attempt.resumed_from = resumed_from
        session.add(attempt)
        session.flush()
        if row.name == main:
            held = [AttemptDevice(attempt_id=attempt.id, device_id=each, open=True) for each in DEVICES]
            session.add_all(held)
            session.flush()
        session.execute(
            text("UPDATE attempts SET ended_at = started_at + interval '10s' WHERE id = :id"),
            {"id": attempt.id},
        )
        move(session, row, StepStatus.SUCCEEDED)
    error = None if ok else {"code": "step_failed", "message": "It broke.", "param": None}
    end_job(session, job, JobStatus.SUCCEEDED if ok else JobStatus.FAILED, error=error)
    return job


@pytest.fixture(autouse=True)
def devices(session: Session) -> None:
    for index, each in enumerate(DEVICES):
        session.add(
            Device(id=each, host="h", index=index, name="H200", memory_bytes=1, serves=None, shares=False)
        )
    session.flush()


def test_tells_the_device_the_results_and_how_long_each_step_took(session: Session) -> None:
    finish(session)
    [told] = finished_fine_tunes(session)
    assert (told["device"], told["devices"]) == ("H200", 2)
    assert told["results"] == {"prepare": {"estimate": {"fits": True}}, "train": TRAINED}
    assert told["seconds"] == dict.fromkeys(("prepare", "train", "export", "verify", "publish"), 10.0)


def test_of_what_was_quantised_it_is_that_step(session: Session) -> None:
    params = {"base_model": "tiny", "name": "x"}
    job = add_job(session, kind=JobKind.QUANTIZE, params=params)
    made = {"peak_memory_bytes": 5, "estimate": {"foretold": {"seconds": 1.0}}}
    succeed(session, job, {"quantize": made}, main="quantize")
    [told] = finished_quantizations(session)
    assert (told["device"], told["results"]) == ("H200", {"quantize": made})
    assert told["seconds"] == dict.fromkeys(("quantize", "verify", "publish"), 10.0)
    assert finished_fine_tunes(session) == []


def test_newest_first(session: Session) -> None:
    for speed in (1.0, 2.0):
        finish(session, trained={**TRAINED, "tokens_per_second": speed})
    speeds = [told["results"]["train"]["tokens_per_second"] for told in finished_fine_tunes(session)]
    assert speeds == [2.0, 1.0]


def test_leaves_out_what_says_nothing_of_another_job(session: Session) -> None:
    finish(session, ok=False)
    finish(session, resumed_from=20)
    finish(session, trained={**TRAINED, "adjustments": {"batch_size": 1}})
    finish(session, trained={})
    assert finished_fine_tunes(session) == []
