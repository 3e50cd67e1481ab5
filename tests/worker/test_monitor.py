"""A real Flower, started as `lathe up` starts it, beside a real worker."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from celery import Celery
from pydantic import SecretStr
from sqlalchemy import select

from db.models import Event
from db.queries.jobs import cancel_job
from db.session import transaction
from deploy.local.parts import Secrets, applications
from serving.local_port import free_port
from tests.worker.conftest import OwnValkey
from worker.claim import Claim
from worker.monitor import Monitor

if TYPE_CHECKING:
    from tests.worker.conftest import Bench, Processes

REPOSITORY = Path(__file__).parents[2]


class Flower:
    """Flower's HTTP API, with its password."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, auth=("lathe", "secret"), trust_env=False, timeout=10)

    def answers(self) -> bool:
        try:
            return self.client.get("/healthcheck").status_code == 200
        except httpx.TransportError:
            return False

    def hears(self) -> bool:
        """Whether a worker's events have reached it."""
        return "flower_worker_online{" in self.client.get("/metrics").text

    def tasks(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = self.client.get("/api/tasks").json()
        return found

    def state_of(self, task: str) -> str | None:
        state: str | None = self.tasks().get(task, {}).get("state")
        return state

    def revoke(self, task: str, **options: Any) -> httpx.Response:
        return self.client.post(f"/api/task/revoke/{task}", **{"params": {"terminate": "true"}, **options})


@pytest.fixture(scope="module")
def flower(standing: "Bench") -> Iterator[Flower]:
    port = free_port()
    changes = {"flower_port": port, "flower_user": "lathe", "flower_password": SecretStr("secret")}
    settings = standing.settings.model_copy(update=changes)
    part = next(part for part in applications(settings, Secrets(settings), None) if part.name == "flower")
    with (standing.folder / "worker-flower.log").open("wb") as log:
        process = subprocess.Popen(
            part.argv, env={**os.environ, **part.environment}, cwd=REPOSITORY, stdout=log, stderr=log
        )
    shown = Flower(part.address)
    try:
        standing.wait_for(shown.answers, seconds=40)
        # It hears of what happens from now on.
        standing.wait_for(shown.hears)
        yield shown
    finally:
        shown.client.close()
        process.terminate()
        process.wait(20)


def events(bench: "Bench", job_id: str) -> list[str]:
    with bench.factory() as session:
        return list(session.scalars(select(Event.message).where(Event.job_id == job_id)))


class TestShown:
    def test_attempts_are_tasks_and_doorbells_are_not(self, standing: "Bench", flower: Flower) -> None:
        done = standing.submit(params={"name": "shown"})
        failed = standing.submit(do={"train": "refuse"})
        assert standing.ended(done).status == "succeeded"
        assert standing.ended(failed).status == "failed"
        standing.wait_for(lambda: flower.state_of(f"{done}.publish.1") == "SUCCESS")
        tasks = flower.tasks()
        assert {row["name"] for uuid, row in tasks.items() if uuid.startswith(done)} == {
            "pretrain.train", "pretrain.export", "pretrain.verify", "pretrain.publish",
        }  # fmt: skip
        train = tasks[f"{done}.train.1"]
        assert (train["state"], train["args"]) == ("SUCCESS", f"('{done}',)")
        assert train["runtime"] > 0
        standing.wait_for(lambda: flower.state_of(f"{failed}.train.1") == "FAILURE")
        assert flower.tasks()[f"{failed}.train.1"]["exception"] == "Line 3 has no answer."
        assert not any("doorbell" in str(row["name"]) for row in flower.tasks().values())


class TestFrozenBroker:
    def test_holds_up_nobody(self, own_valkey: OwnValkey) -> None:
        claim = Claim("job-1", "default", "pretrain", 1, "train", "train", 1, deadline=0)
        monitor = Monitor()
        with (
            Celery(broker=own_valkey.url, set_as_current=False) as app,
            app.connection_for_write() as connection,
        ):
            dispatcher = app.events.Dispatcher(connection, hostname="worker")
            dispatcher.send("worker-online")
            monitor.begin(SimpleNamespace(event_dispatcher=dispatcher))
            own_valkey.freeze()
            telling = threading.Thread(target=monitor.started, args=(claim,), daemon=True)
            telling.start()
            telling.join(20)
            assert not telling.is_alive()
            own_valkey.thaw()


class TestRevoke:
    def test_of_an_attempt_cancels_its_job(
        self, standing: "Bench", flower: Flower, processes: "Processes"
    ) -> None:
        job_id = standing.submit(do={"train": "slow"})
        standing.wait_for(lambda: flower.state_of(f"{job_id}.train.1") == "STARTED")
        standing.wait_for(lambda: len(processes(job_id)) == 4)
        assert flower.revoke(f"{job_id}.train.1", auth=("lathe", "guess")).status_code == 401
        assert flower.revoke(f"{job_id}.train.1").status_code == 200
        job = standing.ended(job_id)
        assert job.status == "cancelled"
        assert {step.status for step in job.steps} == {"cancelled"}
        assert processes(job_id) == []
        standing.wait_for(lambda: flower.state_of(f"{job_id}.train.1") == "REVOKED")
        assert any(line.startswith("Revoked in Celery") for line in events(standing, job_id))

    def test_of_a_queued_job_by_its_own_id_keeps_it_from_running(
        self, standing: "Bench", flower: Flower
    ) -> None:
        before = standing.submit(do={"train": "slow"})
        standing.wait_for(lambda: standing.began(before))
        job_id = standing.submit()
        assert flower.revoke(job_id, params={}).status_code == 200  # without terminate it is the same
        assert standing.ended(job_id).status == "cancelled"
        with transaction(standing.factory) as session:
            cancel_job(session, before, project_id="default")
        assert standing.ended(before).status == "cancelled"
        assert not standing.began(job_id)

    def test_of_a_step_that_is_done_or_of_a_doorbell_changes_nothing(
        self, standing: "Bench", flower: Flower
    ) -> None:
        job_id = standing.submit(do={"export": "slow"})
        standing.wait_for(lambda: flower.state_of(f"{job_id}.export.1") == "STARTED")
        flower.revoke(f"{job_id}.train.1")
        flower.revoke("ring-0199f3a2c4d17b60a1b2c3d4e5f60718")
        flower.revoke("job-nope")
        # Commands are heard in order: once this one has taken effect, the others have been heard too.
        marked = standing.submit(do={"train": "slow"})
        standing.wait_for(lambda: standing.began(marked))
        flower.revoke(marked)
        assert standing.ended(marked).status == "cancelled"
        assert standing.job(job_id).status == "running"
        flower.revoke(f"{job_id}.export.1")
        assert standing.ended(job_id).status == "cancelled"
        assert standing.workers[0].poll() is None
