"""Lost attempts, by a lapsed lease or a dead worker: ended by whoever looks first, never waited for."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from db.doorbell import Doorbell
from db.models import Attempt
from db.queries.jobs import get_job
from db.session import SessionFactory, is_passing, make_engine, make_session_factory, transaction
from db.settings import STEP_MARKER, Settings
from tests.rows import add_job
from tests.waiting import wait_until
from worker.claim import Claim, claim_step
from worker.identity import identify
from worker.runner import Runner
from worker.sweep import end_lost_attempts


@pytest.fixture
def runner(settings: Settings, session_factory: SessionFactory) -> Iterator[Runner]:
    doorbell = Doorbell(settings.require_redis_url())
    yield Runner(settings, session_factory, doorbell, {})
    doorbell.close()


@pytest.fixture
def lapsed(runner: Runner) -> Claim:
    """An attempt of this machine's whose lease has lapsed."""
    with transaction(runner.factory) as session:
        add_job(session)
        claim = claim_step(session, "train", worker="w", host=runner.host, lease_seconds=0.01)
    assert claim is not None
    time.sleep(0.05)
    return claim


class TestLapsed:
    def test_is_lost_and_its_processes_are_gone_before(self, runner: Runner, lapsed: Claim) -> None:
        left = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            env=os.environ | {STEP_MARKER: lapsed.marker},
        )
        assert end_lost_attempts(runner) == 1
        assert left.wait(5) == -9
        with runner.factory() as session:
            assert session.scalars(select(Attempt.outcome)).all() == ["lost"]
            assert get_job(session, lapsed.job_id, project_id="default").steps[0].status == "queued"
        assert end_lost_attempts(runner) == 0

    def test_whose_rows_are_locked_is_left_for_later(self, runner: Runner, lapsed: Claim) -> None:
        with transaction(runner.factory) as session:
            session.execute(text("SELECT FROM steps WHERE id = :id FOR UPDATE"), {"id": lapsed.step_id})
            assert end_lost_attempts(runner) == 0
        assert end_lost_attempts(runner) == 1

    def test_a_frozen_holder_of_locks_loses_them(
        self, runner: Runner, lapsed: Claim, database_url: str
    ) -> None:
        engine = make_engine(database_url, idle_seconds=0.3)
        with make_session_factory(engine)() as frozen:
            frozen.execute(text("SELECT FROM steps WHERE id = :id FOR UPDATE"), {"id": lapsed.step_id})
            assert end_lost_attempts(runner) == 0
            wait_until(lambda: end_lost_attempts(runner))
            with pytest.raises(DBAPIError) as broken:
                frozen.execute(text("SELECT 1"))
        assert is_passing(broken.value)
        engine.dispose()


def held_by(runner: Runner, process: str | None, *, host: str | None = None) -> Claim:
    """An attempt of the worker `process`, whose lease lasts."""
    with transaction(runner.factory) as session:
        add_job(session)
        claim = claim_step(
            session,
            "train",
            worker="w",
            host=host or runner.host,
            lease_seconds=60,
            worker_process=process,
        )
    assert claim is not None
    return claim


def killed() -> str:
    """What told a process that is dead now."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        told = identify(process.pid)
        process.kill()
    assert told is not None
    return told


class TestDeadWorker:
    def test_its_attempt_is_lost_at_once_and_its_processes_are_gone_before(self, runner: Runner) -> None:
        claim = held_by(runner, killed())
        left = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"],
            env=os.environ | {STEP_MARKER: claim.marker},
        )
        assert end_lost_attempts(runner) == 1
        assert left.wait(5) == -9
        with runner.factory() as session:
            attempt = session.scalars(select(Attempt)).one()
            assert (attempt.outcome, attempt.error) == (
                "lost",
                {"code": "worker_lost", "message": "The worker that ran step train is gone.", "param": None},
            )
            step = get_job(session, claim.job_id, project_id="default").steps[0]
            assert (step.status, step.failures, step.not_before) == ("queued", 1, None)

    def test_a_number_that_another_process_has_by_now_is_no_life(self, runner: Runner) -> None:
        told = identify(os.getpid())
        assert told is not None
        machine, pid, started = told.rsplit(" ", 2)
        held_by(runner, f"{machine} {pid} {int(started) - 1}")
        assert end_lost_attempts(runner) == 1

    def test_of_whom_nothing_is_proven_keeps_its_lease(self, runner: Runner) -> None:
        machine, pid, started = killed().rsplit(" ", 2)
        boot, pids, times = machine.split("/")
        held_by(runner, identify(os.getpid()))
        held_by(runner, None)
        held_by(runner, f"{'0' * len(boot)}/{pids}/{times} {pid} {started}")
        held_by(runner, f"{boot}/{int(pids) + 1}/{times} {pid} {started}")
        held_by(runner, f"{boot}/{pids}/{int(times) + 1} {pid} {started}")
        held_by(runner, f"{machine} {pid} {started}", host="another machine")
        assert end_lost_attempts(runner) == 0

    def test_whose_rows_are_locked_is_waited_for_where_that_is_asked(
        self, runner: Runner, database_url: str
    ) -> None:
        claim = held_by(runner, killed())
        engine = make_engine(database_url, idle_seconds=0.3)
        with make_session_factory(engine)() as frozen:
            frozen.execute(text("SELECT FROM jobs WHERE id = :id FOR UPDATE"), {"id": claim.job_id})
            assert end_lost_attempts(runner) == 0
            assert end_lost_attempts(runner, wait=True) == 1
            with pytest.raises(DBAPIError):
                frozen.execute(text("SELECT 1"))
        engine.dispose()
