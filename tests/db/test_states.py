"""Moves: the table in `db/states.py`, the function that uses it, and the trigger agree."""

import itertools

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.errors import Conflict
from db.models import Job, Step
from db.queries.states import move
from db.states import ENDED_JOB, JOB_MOVES, STEP_MOVES, JobKind, JobStatus, StepStatus
from tests.rows import add_job


@pytest.fixture
def job(session: Session) -> Job:
    return add_job(session)


def force(session: Session, row: Job | Step, status: str) -> None:
    """Put a row into any state, past the trigger."""
    session.execute(text("SET LOCAL session_replication_role = replica"))
    finished = "clock_timestamp()" if status in ENDED_JOB else "NULL"
    session.execute(
        text(f"UPDATE {row.__tablename__} SET status = :status, finished_at = {finished} WHERE id = :id"),  # noqa: S608
        {"status": status, "id": row.id},
    )
    session.execute(text("SET LOCAL session_replication_role = origin"))
    session.refresh(row)


class TestJobMoves:
    @pytest.mark.parametrize(("old", "new"), list(itertools.permutations(JobStatus, 2)))
    def test_trigger_agrees_with_the_table(
        self, session: Session, job: Job, old: JobStatus, new: JobStatus
    ) -> None:
        force(session, job, old)
        finished = "clock_timestamp()" if new in ENDED_JOB else "NULL"
        statement = text(f"UPDATE jobs SET status = :new, finished_at = {finished} WHERE id = :id")  # noqa: S608
        if new in JOB_MOVES[old]:
            assert session.execute(statement, {"new": new, "id": job.id}).rowcount == 1
        else:
            with pytest.raises(IntegrityError, match="may not go from"), session.begin_nested():
                session.execute(statement, {"new": new, "id": job.id})

    def test_move_refuses_what_the_table_does_not_list(self, session: Session, job: Job) -> None:
        with pytest.raises(Conflict, match="A queued job cannot become succeeded"):
            move(session, job, JobStatus.SUCCEEDED)

    def test_move_keeps_the_times(self, session: Session, job: Job) -> None:
        move(session, job, JobStatus.RUNNING)
        session.refresh(job)
        assert job.started_at is not None
        assert job.finished_at is None
        move(session, job, JobStatus.FAILED)
        session.refresh(job)
        assert job.finished_at is not None
        assert job.finished_at >= job.started_at


class TestStepMoves:
    @pytest.mark.parametrize(("old", "new"), list(itertools.permutations(StepStatus, 2)))
    def test_trigger_agrees_with_the_table(
        self, session: Session, job: Job, old: StepStatus, new: StepStatus
    ) -> None:
        step = job.steps[0]
        force(session, step, old)
        statement = text("UPDATE steps SET status = :new WHERE id = :id")
        if new in STEP_MOVES[old]:
            assert session.execute(statement, {"new": new, "id": step.id}).rowcount == 1
        else:
            with pytest.raises(IntegrityError, match="may not go from"), session.begin_nested():
                session.execute(statement, {"new": new, "id": step.id})


class TestCreateJob:
    def test_only_the_first_step_may_be_claimed(self, job: Job) -> None:
        assert [step.status for step in job.steps] == ["queued", "pending", "pending", "pending"]

    def test_a_job_that_waits_for_another_has_no_claimable_step(self, session: Session, job: Job) -> None:
        waiting = add_job(session, kind=JobKind.FINE_TUNE, params={}, waits_for_job_id=job.id)
        assert {step.status for step in waiting.steps} == {"pending"}
