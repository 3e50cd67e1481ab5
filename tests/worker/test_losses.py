"""Whatever is lost, broker, database, API or progress: the work goes on by itself, within 30 s."""

import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import redis
from pydantic import SecretStr
from sqlalchemy import select, text

import migrations
from db.models import Attempt, Event, Step
from db.session import make_engine, make_session_factory, transaction
from db.settings import Settings
from deploy.local import postgres
from serving.local_port import free_port
from tests.worker.conftest import REPOSITORY, Bench, OwnValkey, environment

if TYPE_CHECKING:
    from tests.worker.conftest import Processes

COUNTS = {"train": "counts"}


def outcomes(bench: Bench, job_id: str) -> list[str | None]:
    with bench.factory() as session:
        query = select(Attempt.outcome).join(Step, Step.id == Attempt.step_id)
        query = query.where(Step.job_id == job_id, Step.name == "train").order_by(Attempt.number)
        return list(session.scalars(query))


def rings(redis_url: str) -> int | None:
    """How many rings lie in the broker; None when it does not answer."""
    try:
        with redis.Redis.from_url(redis_url) as client:
            return int(client.llen("train"))  # type: ignore[arg-type]
    except redis.ConnectionError:
        return None


class OwnPostgres:
    """A database of the test's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, self._password = folder, free_port(), secrets.token_hex(8)
        postgres.initialise(folder, self._password)
        self.start()
        self.url = postgres.database_url(self._port, self._password)
        migrations.upgrade(self.url)

    def start(self) -> None:
        argv = postgres.server_argv(self._folder, self._port)
        self._process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        postgres.wait_until_ready(self._port, self._password)

    def stop(self) -> None:
        """As `pg_ctl stop -m immediate`: nothing is brought to an end, and the next start recovers."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[OwnPostgres]:
    server = OwnPostgres(tmp_path / "postgres" / "cluster")
    yield server
    server.stop()


@pytest.fixture
def on_own_postgres(own_postgres: OwnPostgres, settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    """A bench whose jobs lie in the test's own Postgres."""
    settings = settings.model_copy(update={"database_url": SecretStr(own_postgres.url)})
    engine = make_engine(own_postgres.url)
    bench = Bench(settings, make_session_factory(engine), tmp_path)
    yield bench
    bench.close()
    engine.dispose()


class TestBroker:
    def test_flushed(self, bench: Bench) -> None:
        """The ring lies in the broker, its worker being frozen, and is flushed away."""
        worker = bench.start_worker()
        bench.wait_for(lambda: " ready." in bench.logs())
        with redis.Redis.from_url(bench.settings.require_redis_url()) as client:
            worker.send_signal(signal.SIGSTOP)
            # Until the broker has given it up that it still waits for, it would be handed the ring.
            bench.wait_for(lambda: client.info("clients")["blocked_clients"] == 0)  # type: ignore[index]
            job_id = bench.submit()
            bench.wait_for(lambda: client.llen("train") == 1)
            client.flushall()
        worker.send_signal(signal.SIGCONT)
        assert bench.ended(job_id, seconds=30).status == "succeeded"

    @pytest.mark.slow  # the short form of bench/chaos.py kills its broker, and jobs go on
    def test_restarted(self, bench: Bench, own_valkey: OwnValkey) -> None:
        bench.use_broker(own_valkey.url)
        worker = bench.start_worker()
        assert bench.ended(bench.submit()).status == "succeeded"
        own_valkey.stop()
        during = bench.submit()
        own_valkey.start()
        after = bench.submit()
        for job_id in (during, after):
            assert bench.ended(job_id, seconds=30).status == "succeeded"
        assert worker.poll() is None


class TestPostgres:
    def test_restarted_within_the_lease_the_attempt_goes_on(
        self, on_own_postgres: Bench, own_postgres: OwnPostgres, processes: "Processes"
    ) -> None:
        bench = on_own_postgres
        bench.settings = bench.settings.model_copy(update={"lease_seconds": 20.0})
        bench.start_worker()
        job_id = bench.submit(do=COUNTS)
        bench.wait_for(lambda: bench.began(job_id))
        own_postgres.stop()
        own_postgres.start()
        assert bench.ended(job_id, seconds=30).status == "succeeded"
        assert outcomes(bench, job_id) == ["done"]

    @pytest.mark.slow  # a restart is proven above, and a lease that lapses in test_serve.py
    def test_away_for_longer_the_step_is_tried_again(
        self, on_own_postgres: Bench, own_postgres: OwnPostgres, processes: "Processes"
    ) -> None:
        bench = on_own_postgres
        worker = bench.start_worker()
        job_id = bench.submit(do={"train": "once"})
        bench.wait_for(lambda: bench.began(job_id))
        own_postgres.stop()
        bench.wait_for(lambda: processes(job_id) == [])
        own_postgres.start()
        assert bench.ended(job_id, seconds=30).status == "succeeded"
        assert outcomes(bench, job_id) == ["lost", "done"]
        assert worker.poll() is None

    def test_a_worker_that_starts_before_it_waits_for_it(
        self, on_own_postgres: Bench, own_postgres: OwnPostgres
    ) -> None:
        bench = on_own_postgres
        job_id = bench.submit()
        own_postgres.stop()
        worker = bench.start_worker()
        bench.wait_for(lambda: "database_away" in bench.logs())
        own_postgres.start()
        assert bench.ended(job_id, seconds=30).status == "succeeded"
        assert worker.poll() is None


class TestApi:
    def test_killed_between_commit_and_doorbell(
        self, bench: Bench, own_valkey: OwnValkey, tmp_path: Path
    ) -> None:
        """The broker is frozen, so that the ring waits for it when the API is killed."""
        bench.use_broker(own_valkey.url)
        bench.wait_for(lambda: rings(own_valkey.url) == 0)
        own_valkey.freeze()
        port = free_port()
        api = subprocess.Popen(
            [sys.executable, "-m", "api"],
            cwd=REPOSITORY,
            env=environment(bench.settings) | {"LATHE_API_PORT": str(port)},
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
                bench.wait_for(lambda: answers(client))
                answer = client.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "m"}})
        finally:
            api.kill()
            api.wait()
        assert answer.status_code == 202
        own_valkey.thaw()
        assert rings(own_valkey.url) == 0
        bench.start_worker()
        assert bench.ended(answer.json()["id"], seconds=30).status == "succeeded"


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


class TestOnlyWorker:
    def test_killed_while_an_older_job_waits_for_its_slot(self, bench: Bench, processes: "Processes") -> None:
        """Long before the lease lapses, the next worker goes on with what was torn from the one before."""
        bench.settings = bench.settings.model_copy(update={"lease_seconds": 60.0})
        waiting = bench.submit()
        with transaction(bench.factory) as session:
            session.execute(text("UPDATE steps SET not_before = clock_timestamp() + interval '1 hour'"))
        worker = bench.start_worker()
        torn = bench.submit(do={"train": "once"})
        bench.wait_for(lambda: len(processes(torn)) == 4)
        worker.kill()
        worker.wait()
        with transaction(bench.factory) as session:
            session.execute(text("UPDATE steps SET not_before = NULL"))
        bench.start_worker()
        for job_id in (torn, waiting):
            assert bench.ended(job_id, seconds=30).status == "succeeded"
        trained = [(note[0], note[2]) for note in bench.notes() if note[1] == "train" and note[3] == "began"]
        assert trained == [(torn, "1"), (torn, "2"), (waiting, "1")]
        assert outcomes(bench, torn) == ["lost", "done"]
        with bench.factory() as session:
            warned = select(Event.message).where(Event.job_id == torn, Event.level == "warn")
            assert (
                session.scalars(warned)
                .one()
                .startswith("The worker that ran step train is gone. Trying again at once")
            )


class TestHungChild:
    def test_is_ended_and_the_step_tried_again(self, bench: Bench) -> None:
        # Longer than a process takes to start on a busy machine: until it speaks, it is silent.
        bench.settings = bench.settings.model_copy(update={"stall_seconds": 4.0})
        bench.start_worker()
        job_id = bench.submit(do={"train": "hang_once"})
        assert bench.ended(job_id, seconds=30).status == "succeeded"
        assert outcomes(bench, job_id) == ["lost", "done"]
        with bench.factory() as session:
            told = select(Event.message).where(Event.job_id == job_id, Event.level == "warn")
            assert session.scalars(told).one().startswith("Step train showed no progress for 4 s.")
