"""Pushes by a real worker: killed, cancelled, and what is left of either at a hub."""

import hashlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from db.models import Attempt, Event, Step
from db.params.push import PushParams
from db.queries.jobs import cancel_job
from db.session import transaction
from db.sources import Held, Source, hold, source_folder
from db.states import JobKind, JobStatus, Outcome
from db.storage import attempt_log
from tests.worker.steps.fake_hub import FakeHub
from tests.worker.steps.fake_hub_writing import TOKEN

if TYPE_CHECKING:
    from tests.worker.conftest import Bench, Processes

SIZE = 60_000
ABOUT: dict[str, Any] = {
    "kind": "fine_tune", "what": "gguf", "prompted": False, "model": "faq@1", "base": None, "trained": None,
    "published": [],
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    server = FakeHub({}).start()
    yield server
    server.stop()


def push(bench: "Bench", root: Path) -> str:
    """A job of kind push of three files, before any worker is there."""
    files = []
    for number in range(3):
        path = root / f"faq-{number}.gguf"
        path.write_bytes(bytes([number]) * SIZE)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append(Held(path, f"gguf/{path.name}", SIZE, digest))
    given = {"model": "faq", "repository": "org/faq", "what": "gguf"}
    params = PushParams.model_validate(given).model_dump(mode="json")
    job_id = bench.submit(JobKind.PUSH, params=params)
    hold(Source(dict(ABOUT), files), source_folder(bench.settings.storage_root, job_id))
    return job_id


def start(bench: "Bench", hub: FakeHub) -> None:
    bench.start_worker("serve_training.py", LATHE_HUB_URL=hub.url, LATHE_HUB_TOKEN=TOKEN)


def attempts_of(bench: "Bench", job_id: str) -> list[Attempt]:
    with bench.factory() as session:
        return list(session.scalars(select(Attempt).join(Step).where(Step.job_id == job_id)))


def assert_no_secret_is_told(bench: "Bench", job_id: str) -> None:
    """Neither the token nor a signed address, in anything that the attempts wrote or said."""
    with bench.factory() as session:
        events = list(session.scalars(select(Event).where(Event.job_id == job_id)))
    attempts = attempts_of(bench, job_id)
    logs = [attempt_log(bench.settings.storage_root, job_id, "push", each.number) for each in attempts]
    written = [path.read_text() for path in logs if path.exists()]
    said = [f"{each.message} {each.data}" for each in events]
    ended = [f"{each.error} {each.stderr}" for each in attempts]
    everything = "\n".join([*written, *said, *ended, str(bench.job(job_id).result), bench.logs()])
    assert TOKEN not in everything
    assert "X-Amz-Signature" not in everything


class TestPush:
    @pytest.mark.slow
    def test_a_killed_one_goes_on_with_what_the_hub_lacks_and_tells_no_token(
        self, bench: "Bench", hub: FakeHub, tmp_path: Path, processes: "Processes"
    ) -> None:
        hub.puts_held_from, hub.held_put = 1, threading.Event()
        job_id = push(bench, tmp_path)
        start(bench, hub)
        bench.wait_for(lambda: hub.puts == 2)
        for process in processes(job_id):
            process.send_signal(signal.SIGKILL)
        hub.puts_held_from = None
        hub.held_put.set()
        job = bench.ended(job_id)
        assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
        assert job.result is not None
        assert job.result["commit"] == hub.held["org/faq"].branches["main"]
        assert hub.received == 3 * SIZE
        assert [each.outcome for each in attempts_of(bench, job_id)] == [Outcome.LOST, Outcome.DONE]
        assert_no_secret_is_told(bench, job_id)

    def test_a_cancelled_one_leaves_the_repository_as_it_was(
        self, bench: "Bench", hub: FakeHub, tmp_path: Path, processes: "Processes"
    ) -> None:
        hub.puts_held_from, hub.held_put = 1, threading.Event()
        job_id = push(bench, tmp_path)
        start(bench, hub)
        bench.wait_for(lambda: hub.puts == 2)
        with transaction(bench.factory) as session:
            cancel_job(session, job_id, project_id="default")
        assert bench.ended(job_id).status == JobStatus.CANCELLED
        assert processes(job_id) == []
        hub.held_put.set()
        assert_no_secret_is_told(bench, job_id)
        assert set(hub.held["org/faq"].files) == {".gitattributes"}
