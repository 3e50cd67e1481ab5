"""Pause and resume: every way in which a pause and the end of a step can meet, and real workers."""

import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from db.errors import Conflict
from db.models import Attempt, Event, Job, Step
from db.queries.jobs import (
    add_event,
    cancel_job,
    end_job,
    get_job,
    lock_steps,
    pause_job,
    resume_job,
)
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.states import JobStatus, Outcome, StepStatus
from tests.rows import add_job
from worker.claim import claim_step
from worker.endings import Ending, end_attempt
from worker.lease import hold_fence, renew

if TYPE_CHECKING:
    from tests.worker.conftest import Bench, Processes


def submit(session: Session, **options: str | int) -> Job:
    options = {"max_attempts": 2, **options}
    return add_job(session, **options)


def claimed(session: Session, queue: str = "train") -> bool:
    return claim_step(session, queue, worker="w", host="h", lease_seconds=15) is not None


def pause(session: Session, job: Job) -> str:
    return pause_job(session, job.id, project_id="default").status


def resume(session: Session, job: Job) -> str:
    return resume_job(session, job.id, project_id="default").status


def end(session: Session, job: Job, outcome: Outcome, *, step: int = 0, adjustments: bool = False) -> None:
    """End the running attempt, as its worker does."""
    error = {"code": "x", "message": "It broke.", "param": None}
    if adjustments:
        error["adjustments"] = {"batch_size": 1}  # type: ignore[assignment]
    ending = Ending(outcome, error=None if outcome in (Outcome.DONE, Outcome.RELEASED) else error)
    end_attempt(session, get_job(session, job.id, project_id="default", lock=True), job.steps[step], ending)


@pytest.fixture
def job(session: Session) -> Job:
    return submit(session)


@pytest.fixture
def running(session: Session, job: Job) -> Job:
    assert claimed(session)
    session.refresh(job)
    return job


class TestQueued:
    def test_nothing_of_it_is_claimed_until_it_is_resumed(self, session: Session, job: Job) -> None:
        assert [pause(session, job), pause(session, job)] == ["paused", "paused"]
        assert not claimed(session)
        assert [resume(session, job), resume(session, job)] == ["queued", "queued"]
        assert claimed(session)

    def test_between_two_steps_it_is_paused_at_once(self, session: Session, running: Job) -> None:
        end(session, running, Outcome.DONE)
        assert (running.status, running.steps[1].status) == ("running", "queued")
        assert pause(session, running) == "paused"
        assert not claimed(session, "cpu")
        assert resume(session, running) == "queued"
        assert claimed(session, "cpu")
        assert running.started_at is not None

    def test_its_backoff_outlasts_the_pause(self, session: Session, running: Job) -> None:
        running.max_attempts = 5
        running.steps[0].failures = 2
        end(session, running, Outcome.LOST)
        pause(session, running)
        resume(session, running)
        assert not claimed(session)
        assert running.steps[0].failures == 3


class TestStepEndsWhilePausing:
    @pytest.mark.parametrize(
        ("outcome", "adjustments", "steps"),
        [
            (Outcome.RELEASED, False, ["queued", "pending"]),
            (Outcome.DONE, False, ["succeeded", "queued"]),
            (Outcome.LOST, False, ["queued", "pending"]),
            (Outcome.EXHAUSTED, True, ["queued", "pending"]),
        ],
    )
    def test_the_job_is_paused_whatever_came_of_the_step(
        self, session: Session, running: Job, outcome: Outcome, adjustments: bool, steps: list[str]
    ) -> None:
        assert pause(session, running) == pause(session, running) == "pausing"
        end(session, running, outcome, adjustments=adjustments)
        assert running.status == "paused"
        assert [step.status for step in running.steps[:2]] == steps
        queue = "cpu" if outcome == Outcome.DONE else "train"
        assert not claimed(session, queue)
        assert resume(session, running) == "queued"
        assert claimed(session, queue)

    @pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.EXHAUSTED, Outcome.LOST])
    def test_the_job_fails_when_nothing_is_left_to_resume(
        self, session: Session, running: Job, outcome: Outcome
    ) -> None:
        running.max_attempts = 1
        pause(session, running)
        end(session, running, outcome)
        assert running.status == "failed"

    def test_a_drained_or_paused_attempt_is_not_counted(self, session: Session, running: Job) -> None:
        pause(session, running)
        end(session, running, Outcome.RELEASED)
        assert running.steps[0].failures == 0

    def test_the_last_step_done_is_success(self, session: Session, running: Job) -> None:
        for step in running.steps[1:]:
            session.execute(text("DELETE FROM steps WHERE id = :id"), {"id": step.id})
        session.expire(running)
        pause(session, running)
        end(session, running, Outcome.DONE)
        assert (running.status, running.finished_at is not None) == ("succeeded", True)


class TestMeetings:
    def test_resumed_before_its_step_has_stopped(self, session: Session, running: Job) -> None:
        pause(session, running)
        assert resume(session, running) == "running"
        end(session, running, Outcome.RELEASED)
        assert running.status == "running"
        assert claimed(session)

    def test_resumed_and_paused_again_before_its_step_has_stopped(
        self, session: Session, running: Job
    ) -> None:
        pause(session, running)
        resume(session, running)
        assert pause(session, running) == "pausing"
        end(session, running, Outcome.RELEASED)
        assert running.status == "paused"

    def test_cancelled_while_its_step_stops(self, session: Session, running: Job) -> None:
        pause(session, running)
        assert cancel_job(session, running.id, project_id="default").status == "cancelling"
        for act in (pause, resume):
            with pytest.raises(Conflict, match="is being cancelled"):
                act(session, running)
        end(session, running, Outcome.DONE)
        assert (running.status, running.steps[0].status) == ("cancelled", "cancelled")

    def test_cancelled_while_paused(self, session: Session, job: Job) -> None:
        pause(session, job)
        assert cancel_job(session, job.id, project_id="default").status == "cancelled"
        with pytest.raises(Conflict, match="nothing to resume"):
            resume(session, job)

    def test_what_it_waits_for_is_made_meanwhile(self, session: Session, running: Job) -> None:
        waiting = submit(session, waits_for_job_id=running.id)
        assert pause(session, waiting) == "paused"
        for step in lock_steps(session, running):
            for status in (StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.SUCCEEDED):
                if step.status != status and not (step.status == "running" and status == "queued"):
                    move(session, step, status)
        end_job(session, running, JobStatus.SUCCEEDED)
        assert (waiting.status, waiting.steps[0].status) == ("paused", "queued")
        assert not claimed(session)
        resume(session, waiting)
        assert claimed(session)

    def test_what_it_waits_for_cannot_be_made(self, session: Session, running: Job) -> None:
        waiting = submit(session, waits_for_job_id=running.id)
        pause(session, waiting)
        end(session, running, Outcome.REFUSED)
        assert waiting.status == "failed"
        assert (waiting.error or {})["code"] == "awaited_job_ended"


class TestAtOnce:
    def test_owners_and_workers_never_wait_in_a_circle(self, session_factory: SessionFactory) -> None:
        with transaction(session_factory) as session:
            jobs = [submit(session, max_attempts=20).id for _ in range(4)]

        def steer(seed: int) -> None:
            dice = random.Random(seed)  # noqa: S311 - reproducible on purpose
            for _ in range(60):
                act = dice.choice((pause_job, pause_job, resume_job, resume_job, cancel_job))
                if act is cancel_job and dice.random() < 0.95:
                    continue
                with contextlib.suppress(Conflict), transaction(session_factory) as session:
                    act(session, dice.choice(jobs), project_id="default")

        def work(seed: int) -> None:
            dice = random.Random(seed)  # noqa: S311
            for _ in range(40):
                queue = dice.choice(("train", "cpu"))
                with transaction(session_factory) as session:
                    claim = claim_step(session, queue, worker="w", host="h", lease_seconds=60)
                if claim is None:
                    continue
                with transaction(session_factory) as session:
                    renew(session, claim, 60)
                ending = Ending(dice.choice((Outcome.RELEASED, Outcome.RELEASED, Outcome.DONE)))
                with transaction(session_factory) as session:
                    row = get_job(session, claim.job_id, project_id="default", lock=True)
                    end_attempt(session, row, hold_fence(session, claim), ending)

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: (steer if number % 2 else work)(number), range(6)))
        with session_factory() as session:
            for job_id in jobs:
                job = get_job(session, job_id, project_id="default")
                assert job.status not in ("pausing", "cancelling")
                assert "running" not in {step.status for step in job.steps}

    def test_events_are_committed_in_the_order_of_their_numbers(
        self, session_factory: SessionFactory
    ) -> None:
        """Else who watches passes over the one with the lower number."""
        with transaction(session_factory) as session:
            job_id = submit(session).id
            claim = claim_step(session, "train", worker="w", host="h", lease_seconds=60)
        assert claim is not None

        def resume_it() -> None:
            with transaction(session_factory) as session:
                resume_job(session, job_id, project_id="default")

        with transaction(session_factory) as session:
            pause_job(session, job_id, project_id="default")
        with ThreadPoolExecutor(1) as pool:
            with transaction(session_factory) as session:
                hold_fence(session, claim)
                resumed = pool.submit(resume_it)
                while not waits_for_a_lock(session_factory):
                    assert not resumed.done()
                add_event(session, job_id, "Saved.")
            resumed.result()
        with session_factory() as session:
            messages = select(Event.message).where(Event.job_id == job_id).order_by(Event.id)
            assert list(session.scalars(messages))[-2:] == ["Saved.", "Resumed."]


def waits_for_a_lock(factory: SessionFactory) -> bool:
    waiting = text(
        "SELECT EXISTS (SELECT FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock')"
    )
    with factory() as session:
        return bool(session.scalars(waiting).one())


def outcomes(bench: "Bench", job_id: str) -> list[str | None]:
    with bench.factory() as session:
        query = select(Attempt.outcome).join(Step).where(Step.job_id == job_id, Step.name == "train")
        return list(session.scalars(query.order_by(Attempt.number)))


def ask(bench: "Bench", verb: str, job_id: str) -> str:
    act = {"pause": pause_job, "resume": resume_job, "cancel": cancel_job}[verb]
    with transaction(bench.factory) as session:
        return act(session, job_id, project_id="default").status


def is_noted(bench: "Bench", job_id: str, what: str) -> bool:
    return any((note[0], note[3]) == (job_id, what) for note in bench.notes())


def becomes(bench: "Bench", job_id: str, status: str) -> None:
    bench.wait_for(lambda: bench.job(job_id).status == status)


class TestRealWorker:
    def test_goes_on_from_its_checkpoint_on_another_worker(
        self, bench: "Bench", processes: "Processes"
    ) -> None:
        worker = bench.start_worker()
        job_id = bench.submit(do={"train": "counts"})
        bench.wait_for(lambda: (bench.job(job_id).steps[0].progress or {}).get("done", 0) >= 3)
        assert ask(bench, "pause", job_id) == "pausing"
        becomes(bench, job_id, "paused")
        assert processes(job_id) == []
        worker.terminate()
        assert worker.wait(30) == 0
        bench.start_worker()
        assert ask(bench, "resume", job_id) == "queued"
        job = bench.ended(job_id)
        assert (job.status, job.steps[0].failures) == ("succeeded", 0)
        assert outcomes(bench, job_id) == ["released", "done"]
        with bench.factory() as session:
            said = list(session.scalars(text(f"SELECT message FROM events WHERE job_id = '{job_id}'")))  # noqa: S608
        assert "Step train was handed back: the job was paused." in said
        counted_from = [int(line.split()[-1].rstrip(".")) for line in said if line.startswith("Counting")]
        assert counted_from[0] == 0 < counted_from[1]

    def test_a_step_without_checkpoints_begins_anew(self, standing: "Bench") -> None:
        job_id = standing.submit(do={"train": "once"})
        standing.wait_for(lambda: standing.began(job_id))
        ask(standing, "pause", job_id)
        becomes(standing, job_id, "paused")
        ask(standing, "resume", job_id)
        assert standing.ended(job_id).status == "succeeded"
        assert outcomes(standing, job_id) == ["released", "done"]

    def test_resumed_while_its_step_saves(self, standing: "Bench") -> None:
        job_id = standing.submit(do={"train": "lingers"})
        standing.wait_for(lambda: standing.began(job_id))
        ask(standing, "pause", job_id)
        standing.wait_for(lambda: is_noted(standing, job_id, "asked"))
        assert ask(standing, "resume", job_id) == "running"
        assert standing.ended(job_id).status == "succeeded"
        assert outcomes(standing, job_id) == ["released", "done"]

    def test_cancelled_while_its_step_saves(self, standing: "Bench", processes: "Processes") -> None:
        job_id = standing.submit(do={"train": "lingers"})
        standing.wait_for(lambda: standing.began(job_id))
        ask(standing, "pause", job_id)
        standing.wait_for(lambda: is_noted(standing, job_id, "asked"))
        assert ask(standing, "cancel", job_id) == "cancelling"
        assert standing.ended(job_id).status == "cancelled"
        assert (processes(job_id), outcomes(standing, job_id)) == ([], ["released"])

    def test_is_paused_by_the_sweep_when_its_worker_dies(self, bench: "Bench") -> None:
        worker = bench.start_worker()
        job_id = bench.submit(do={"train": "lingers"})
        bench.wait_for(lambda: bench.began(job_id))
        ask(bench, "pause", job_id)
        worker.kill()
        bench.start_worker()
        becomes(bench, job_id, "paused")
        ask(bench, "resume", job_id)
        assert bench.ended(job_id).status == "succeeded"
        assert outcomes(bench, job_id) == ["lost", "done"]
