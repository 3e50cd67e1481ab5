"""Which step is claimed, and by how many."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.models import Attempt, Job, Project
from db.queries.jobs import cancel_job, pause_job, resume_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.states import JobKind, JobStatus, Outcome, StepStatus
from tests.rows import add_job
from worker.claim import Claim, claim_step, first_queues, has_work, queues_with_work
from worker.endings import Ending, end_attempt


def submit(session: Session, *, project: str = "default", priority: int = 0) -> Job:
    return add_job(session, project_id=project, priority=priority)


def claim(session: Session, queue: str = "train") -> Claim | None:
    return claim_step(session, queue, worker="w", host="h", lease_seconds=15)


def end(session: Session, job: Job, outcome: Outcome) -> None:
    session.refresh(job)
    end_attempt(session, job, job.steps[0], Ending(outcome))


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

    def test_a_step_can_say_where_the_next_one_is_best_done(self, session: Session) -> None:
        job = submit(session)
        assert claim(session) is not None
        session.refresh(job)
        end_attempt(session, job, job.steps[0], Ending(Outcome.DONE, result={"next_queue": "gpu"}))
        assert claim(session, "cpu") is None
        following = claim(session, "gpu")
        assert following is not None
        assert (following.job_id, following.step) == (job.id, "export")

    def test_the_commit_that_a_base_was_holds_for_the_steps_that_follow(self, session: Session) -> None:
        job = submit(session)
        job.base = {"name": "org/base", "source": "hub", "location": "org/base", "revision": None}
        assert claim(session) is not None
        session.refresh(job)
        end_attempt(session, job, job.steps[0], Ending(Outcome.DONE, result={"base_revision": "abc123"}))
        assert job.base == {
            "name": "org/base", "source": "hub", "location": "org/base", "revision": "abc123",
        }  # fmt: skip

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

    def test_what_was_broken_off_comes_before_what_never_began(self, session: Session) -> None:
        older, lost = submit(session), submit(session, priority=1)
        assert claimed_jobs(session, 1) == [lost.id]
        session.execute(text("UPDATE jobs SET priority = 0"))
        end(session, lost, Outcome.LOST)
        later = submit(session)
        session.execute(text("UPDATE steps SET position = 7 WHERE id = :id"), {"id": later.steps[0].id})
        assert claimed_jobs(session, 3) == [lost.id, later.id, older.id]

    def test_what_its_user_let_wait_does_not(self, session: Session) -> None:
        older, paused, failed = submit(session), submit(session, priority=1), submit(session, priority=1)
        assert claimed_jobs(session, 2) == [paused.id, failed.id]
        session.execute(text("UPDATE jobs SET priority = 0"))
        pause_job(session, paused.id, project_id="default")
        end(session, paused, Outcome.RELEASED)
        resume_job(session, paused.id, project_id="default")
        end(session, failed, Outcome.REFUSED)
        move(session, failed, JobStatus.QUEUED)
        move(session, failed.steps[0], StepStatus.QUEUED)
        assert claimed_jobs(session, 3) == [older.id, paused.id, failed.id]

    def test_of_the_queues_that_share_a_device_too(self, session: Session) -> None:
        older, lost = submit(session), submit(session)
        session.execute(text("UPDATE steps SET queue = 'gpu' WHERE id = :id"), {"id": older.steps[0].id})
        assert claimed_jobs(session, 1) == [lost.id]
        assert first_queues(session, ["gpu"]) == ["gpu"]
        end(session, lost, Outcome.LOST)
        assert first_queues(session, ["gpu", "train"]) == ["train", "gpu"]


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


class TestCancelledBatch:
    def submit(self, session: Session) -> Job:
        params = {"input_file": "file-1", "endpoint": "/v1/embeddings", "finish_within_seconds": None}
        return add_job(session, kind=JobKind.BATCH, params=params)

    def test_what_a_step_came_to_meanwhile_is_no_result(self, session: Session) -> None:
        job = self.submit(session)
        assert claim(session, "io") is not None
        cancel_job(session, job.id, project_id="default")
        session.refresh(job)
        end_attempt(session, job, job.steps[0], Ending(Outcome.DONE, result={"rows": 3, "model": "m"}))
        assert (job.status, job.result, job.steps[0].result) == ("cancelled", None, None)

    def test_one_that_is_paused_is_claimed_once_more_to_write_its_answers(self, session: Session) -> None:
        job = self.submit(session)
        endings = [
            ("io", Ending(Outcome.DONE, result={"rows": 3, "model": "m"})), ("ask", Ending(Outcome.RELEASED)),
        ]  # fmt: skip
        for step, (queue, ending) in zip(job.steps, endings, strict=False):
            assert claim(session, queue) is not None
            session.refresh(job)
            end_attempt(session, job, step, ending)
        pause_job(session, job.id, project_id="default")
        assert cancel_job(session, job.id, project_id="default").status == "cancelling"
        assert claim(session, "ask") is None, "its slots may be busy for hours"
        claimed = claim(session, "io")
        assert claimed is not None
        assert (claimed.step, claimed.cancelling) == ("ask", True)
        session.refresh(job)
        end_attempt(session, job, job.steps[1], Ending(Outcome.RELEASED, result={"rows": 3}))
        assert (job.status, job.result, job.steps[1].queue) == ("cancelled", {"rows": 3}, "ask")

    def test_one_that_has_asked_nothing_is_cancelled_at_once(self, session: Session) -> None:
        job = self.submit(session)
        pause_job(session, job.id, project_id="default")
        assert cancel_job(session, job.id, project_id="default").status == "cancelled"
