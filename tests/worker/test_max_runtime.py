"""max_runtime_seconds: the time of all attempts together, and what follows when it is over."""

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from api.caller import Caller
from api.jobs.schemas import RetryRequest
from api.jobs.service import retry_job
from api.unit_of_work import Unit
from db.models import Attempt, Checkpoint, Event, Job, Step
from db.queries.jobs import get_job
from db.queries.runtime import runtime_seconds
from db.session import transaction
from db.states import Outcome
from tests.rows import add_job
from worker.claim import Claim, claim_step
from worker.clock import host_seconds
from worker.endings import Ending, end_attempt

if TYPE_CHECKING:
    from tests.worker.conftest import Bench


def claim(session: Session) -> Claim:
    found = claim_step(session, "train", worker="w", host="h", lease_seconds=15)
    assert found is not None
    return found


def end(session: Session, job_id: str, outcome: Outcome) -> None:
    job = get_job(session, job_id, project_id="default", lock=True)
    end_attempt(session, job, job.steps[0], Ending(outcome))


@pytest.fixture
def job(session: Session) -> Job:
    return add_job(session, max_runtime_seconds=100)


class TestRuntime:
    def test_is_that_of_all_attempts_and_not_the_time_between(self, session: Session, job: Job) -> None:
        for seconds in (30, 20):
            claim(session)
            end(session, job.id, Outcome.RELEASED)
            session.execute(
                text(
                    "UPDATE attempts SET started_at = now() - interval '1 day', "
                    "ended_at = now() - interval '1 day' + make_interval(secs => :seconds) "
                    "WHERE number = (SELECT max(number) FROM attempts)"
                ),
                {"seconds": seconds},
            )
        assert runtime_seconds(session, job.id) == pytest.approx(50)
        again = claim(session)
        assert again.runs_until == pytest.approx(host_seconds() + 50, abs=5)
        assert runtime_seconds(session, job.id) == pytest.approx(50, abs=5)

    def test_of_an_attempt_whose_worker_went_away_ends_with_its_last_heartbeat(
        self, session: Session, job: Job
    ) -> None:
        claim(session)
        session.execute(
            text(
                "UPDATE attempts SET started_at = now() - interval '9 hours', ended_at = now(), "
                "heartbeat_at = now() - interval '9 hours' + interval '40 s', outcome = 'lost', "
                "error = jsonb_build_object('code', 'worker_lost')"
            )
        )
        assert runtime_seconds(session, job.id) == pytest.approx(40)


def messages(bench: "Bench", job_id: str) -> list[str]:
    with bench.factory() as session:
        return list(session.scalars(select(Event.message).where(Event.job_id == job_id).order_by(Event.id)))


def counted(bench: "Bench", job_id: str) -> bool:
    with bench.factory() as session:
        return bool(session.scalar(select(Checkpoint.id).where(Checkpoint.job_id == job_id).limit(1)))


def retry(bench: "Bench", job_id: str, more_seconds: int) -> None:
    with transaction(bench.factory) as session:
        limit = round(runtime_seconds(session, job_id)) + more_seconds
        retry_job(Unit(session, bench.settings, Caller()), job_id, RetryRequest(max_runtime_seconds=limit))


class TestRealWorker:
    def test_saves_and_fails_and_a_retry_with_more_goes_on(self, standing: "Bench") -> None:
        job_id = standing.submit(do={"train": "counts"}, max_runtime_seconds=1)
        for more in range(2, 30, 2):
            error = standing.ended(job_id).error or {}
            assert (error["code"], error["step"]) == ("max_runtime_exceeded", "train")
            assert f"lathe retry {job_id} --max-runtime" in error["message"]
            if counted(standing, job_id):
                break
            # On a busy machine the time was over before the step had counted.
            retry(standing, job_id, more)
        retry(standing, job_id, 600)
        assert standing.ended(job_id).status == "succeeded"
        counted_from = [
            int(line.split()[-1][:-1]) for line in messages(standing, job_id) if "Counting" in line
        ]
        assert counted_from[0] == 0 < counted_from[-1]
        with standing.factory() as session:
            query = select(Attempt.outcome).join(Step).where(Step.job_id == job_id, Step.name == "train")
            *before, last = session.scalars(query.order_by(Attempt.number))
        assert (set(before), last) == ({"exhausted"}, "done")

    def test_no_step_begins_once_the_time_is_over(self, standing: "Bench") -> None:
        with transaction(standing.factory) as session:
            job = add_job(
                session, params={"name": "late", "ledger": str(standing.ledger)}, max_runtime_seconds=60
            )
            claim(session)
            session.execute(
                text("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE step_id = :id"),
                {"id": job.steps[0].id},
            )
            end(session, job.id, Outcome.DONE)
        ended = standing.ended(job.id)
        assert (ended.error or {}).get("code") == "max_runtime_exceeded"
        assert (ended.steps[1].status, ended.steps[1].attempt) == ("failed", 1)
        assert not standing.began(job.id, "export")
