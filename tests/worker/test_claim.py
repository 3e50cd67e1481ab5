"""Which step is claimed, and by how many."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.models import Attempt, Job, Project
from db.queries.jobs import cancel_job, create_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.states import JobKind, JobStatus, StepStatus
from worker.claim import Claim, claim_step, has_work, queues_with_work


def submit(session: Session, *, project: str = "default", priority: int = 0) -> Job:
    return create_job(
        session, project_id=project, kind=JobKind.PRETRAIN, params={"name": "m"}, priority=priority
    )


def claim(session: Session, queue: str = "train") -> Claim | None:
    return claim_step(session, queue, worker="w", host="h", lease_seconds=15)


def claimed_jobs(session: Session, number: int) -> list[str]:
    return [found.job_id for found in (claim(session) for _ in range(number)) if found is not None]


class TestOrder:
    def test_the_oldest_first(self, session: Session) -> None:
        jobs = [submit(session) for _ in range(3)]
        assert claimed_jobs(session, 4) == [job.id for job in jobs]

    def test_priority_comes_before_age(self, session: Session) -> None:
        old, urgent = submit(session), submit(session, priority=5)
        assert claimed_jobs(session, 2) == [urgent.id, old.id]

    def test_a_project_with_less_running_comes_before_age(self, session: Session) -> None:
        session.add(Project(id="other"))
        session.flush()
        many = [submit(session) for _ in range(3)]
        one = submit(session, project="other")
        assert claimed_jobs(session, 4) == [many[0].id, one.id, many[1].id, many[2].id]

    def test_later_steps_of_started_jobs_come_first(self, session: Session) -> None:
        new, started = submit(session), submit(session)
        session.execute(text("UPDATE steps SET queue = 'cpu'"))
        move(session, started.steps[0], StepStatus.CANCELLED)
        move(session, started.steps[1], StepStatus.QUEUED)
        first, second = claim(session, "cpu"), claim(session, "cpu")
        assert first is not None
        assert second is not None
        assert (first.job_id, first.step) == (started.id, "export")
        assert second.job_id == new.id


class TestEligible:
    def test_nothing_of_another_queue(self, session: Session) -> None:
        submit(session)
        assert claim(session, "cpu") is None

    def test_nothing_before_its_time(self, session: Session) -> None:
        submit(session)
        session.execute(text("UPDATE steps SET not_before = clock_timestamp() + interval '1 minute'"))
        assert claim(session) is None
        assert not has_work(session, "train")
        session.execute(text("UPDATE steps SET not_before = clock_timestamp() - interval '1 second'"))
        assert queues_with_work(session) == {"train"}
        assert claim(session) is not None

    def test_nothing_of_a_cancelled_or_paused_job(self, session: Session) -> None:
        cancelled, paused = submit(session), submit(session)
        cancel_job(session, cancelled.id, project_id="default")
        move(session, paused, JobStatus.PAUSED)
        assert claim(session) is None


class TestClaimed:
    def test_the_rows_say_who_runs_what(self, session: Session) -> None:
        job = submit(session)
        found = claim(session)
        session.refresh(job)
        step = job.steps[0]
        session.refresh(step)
        assert found is not None
        assert (job.status, step.status, step.attempt, found.attempt) == ("running", "running", 1, 1)
        assert step.lease_expires_at is not None
        assert step.started_at is not None
        attempt = session.scalars(select(Attempt).where(Attempt.step_id == step.id)).one()
        assert (attempt.number, attempt.worker, attempt.host, attempt.outcome) == (1, "w", "h", None)

    @pytest.mark.parametrize("claimers", [8])
    def test_a_hundred_steps_are_claimed_once_each(
        self, session_factory: SessionFactory, claimers: int
    ) -> None:
        with transaction(session_factory) as session:
            jobs = {submit(session).id for _ in range(100)}

        def claim_all(_: int) -> list[str]:
            found = []
            while True:
                with transaction(session_factory) as session:
                    one = claim(session)
                if one is None:
                    return found
                found.append(one.job_id)

        with ThreadPoolExecutor(claimers) as pool:
            claimed = [job for found in pool.map(claim_all, range(claimers)) for job in found]
        # A claimer that found only rows locked by others may have left early; nothing is claimed twice.
        assert len(claimed) == len(set(claimed)) == 100
        assert set(claimed) == jobs
