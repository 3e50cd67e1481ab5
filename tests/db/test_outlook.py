"""What is foretold of jobs: from figures that were measured, or not at all."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.models import Attempt, Job
from db.queries.jobs import end_job, pause_job
from db.queries.outlook import Outlook, outlook
from db.queries.states import move
from db.queries.workers import sign_in
from db.states import JobStatus, StepStatus
from tests.rows import add_job

SECONDS = {"train": 600, "export": 60, "verify": 30, "publish": 10}


def start(session: Session, job: Job, step: int = 0, *, seconds_ago: float = 0) -> None:
    row = job.steps[step]
    if job.status == "queued":
        move(session, job, JobStatus.RUNNING)
    if row.status == "pending":
        move(session, row, StepStatus.QUEUED)
    row.attempt += 1
    move(session, row, StepStatus.RUNNING)
    attempt = Attempt(step_id=row.id, number=row.attempt, worker="w", host="h")
    attempt.project_id, attempt.queue = job.project_id, row.queue
    session.add(attempt)
    session.flush()
    session.execute(
        text(
            "UPDATE attempts SET started_at = clock_timestamp() - make_interval(secs => :ago) WHERE id = :id"
        ),
        {"ago": seconds_ago, "id": attempt.id},
    )


def measure(session: Session, factor: float = 1) -> None:
    """A finished job whose steps took so long."""
    job = add_job(session)
    for position, row in enumerate(job.steps):
        start(session, job, position)
        move(session, row, StepStatus.SUCCEEDED)
        session.execute(
            text(
                "UPDATE attempts SET ended_at = started_at + make_interval(secs => :took), outcome = 'done' "
                "WHERE step_id = :id"
            ),
            {"took": SECONDS[row.name] * factor, "id": row.id},
        )
    end_job(session, job, JobStatus.SUCCEEDED)


def look(session: Session, job: Job) -> tuple[int | None, float | None, float | None]:
    """Its place, and in how many seconds it starts and ends."""
    session.flush()
    session.refresh(job)
    found = outlook(session, job, live_within_seconds=60)
    now = session.scalars(text("SELECT clock_timestamp()")).one()
    starts = (found.starts_at - now).total_seconds() if found.starts_at else None
    ends = (found.finishes_at - now).total_seconds() if found.finishes_at else None
    return found.queue_position, starts, ends


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=5)


@pytest.fixture
def worker(session: Session) -> None:
    sign_in(session, name="w", host="h", pid=1, slots={"train": 1, "cpu": 1})


@pytest.mark.usefixtures("worker")
class TestMeasured:
    @pytest.fixture(autouse=True)
    def _history(self, session: Session) -> None:
        for factor in (0.1, 1, 1, 1, 50):  # by the median, a stray one changes nothing
            measure(session, factor)

    def test_the_first_in_line_starts_at_once(self, session: Session) -> None:
        assert look(session, add_job(session)) == (1, about(0), about(700))

    def test_those_ahead_come_first(self, session: Session) -> None:
        jobs = [add_job(session) for _ in range(3)]
        assert look(session, jobs[2]) == (3, about(1200), about(1900))

    def test_what_runs_has_its_slot_until_its_typical_end(self, session: Session) -> None:
        running, waiting = add_job(session), add_job(session)
        start(session, running, seconds_ago=400)
        assert look(session, waiting) == (1, about(200), about(900))
        assert look(session, running) == (None, None, about(300))

    def test_its_own_estimate_goes_before_the_typical_one(self, session: Session) -> None:
        running, waiting = add_job(session), add_job(session)
        start(session, running, seconds_ago=400)
        running.steps[0].progress = {"done": 1, "total": 9, "eta_seconds": 50.0, "unit": "steps"}
        session.flush()
        session.execute(text("UPDATE steps SET progressed_at = clock_timestamp() - interval '10 s'"))
        assert look(session, waiting) == (1, about(40), about(740))

    def test_more_slots_are_sooner(self, session: Session) -> None:
        sign_in(session, name="w2", host="h", pid=2, slots={"train": 1})
        jobs = [add_job(session) for _ in range(3)]
        assert look(session, jobs[1]) == (2, about(0), about(700))
        assert look(session, jobs[2]) == (3, about(600), about(1300))

    def test_what_is_waited_for_comes_first(self, session: Session) -> None:
        first = add_job(session)
        waiting = add_job(session, waits_for_job_id=first.id)
        assert look(session, waiting) == (None, about(700), about(1400))

    def test_steps_that_are_done_take_no_more_time(self, session: Session) -> None:
        job = add_job(session)
        start(session, job)
        move(session, job.steps[0], StepStatus.SUCCEEDED)
        move(session, job.steps[1], StepStatus.QUEUED)
        assert look(session, job) == (1, about(0), about(100))

    def test_a_job_that_ends_between_two_looks_has_none(self, session: Session) -> None:
        job = add_job(session)
        for position, row in enumerate(job.steps):
            start(session, job, position)
            move(session, row, StepStatus.SUCCEEDED)
        assert look(session, job) == (None, None, None)

    def test_a_paused_or_ended_job_has_none(self, session: Session) -> None:
        paused, ended = add_job(session), add_job(session)
        pause_job(session, paused.id, project_id="default")
        end_job(session, ended, JobStatus.CANCELLED)
        for job in (paused, ended):
            assert outlook(session, job, live_within_seconds=60) == Outlook()


class TestNotKnown:
    @pytest.mark.usefixtures("worker")
    def test_without_a_finished_job_only_the_place_is_told(self, session: Session) -> None:
        jobs = [add_job(session), add_job(session)]
        assert look(session, jobs[0]) == (1, about(0), None)
        assert look(session, jobs[1]) == (2, None, None)

    def test_without_a_worker_it_never_starts(self, session: Session) -> None:
        measure(session)
        assert look(session, add_job(session)) == (1, None, None)

    def test_a_worker_that_is_gone_has_no_slot(self, session: Session, worker: None) -> None:
        measure(session)
        session.execute(text("UPDATE workers SET seen_at = seen_at - :ago"), {"ago": timedelta(minutes=2)})
        assert look(session, add_job(session)) == (1, None, None)

    @pytest.mark.usefixtures("worker")
    def test_before_its_time_it_is_in_no_line(self, session: Session) -> None:
        job = add_job(session)
        session.execute(text("UPDATE steps SET not_before = clock_timestamp() + interval '1 hour'"))
        assert look(session, job) == (None, None, None)
