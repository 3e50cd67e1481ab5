"""Served models make room for a step on their device, and come back: a real router, the real API."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from api.app import create_app
from db.models import Event
from db.session import SessionFactory, transaction
from db.settings import Settings
from serving import devices
from serving.openai_compatible import LlamaServer
from tests.api.conftest import serving
from tests.gpus import FIRST, show_gpus
from tests.rows import add_version
from tests.serving.backends.stand_in import WHOLE, StandIn
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import write_random_gguf
from tests.worker.conftest import Bench
from worker.clearing import Clearing

GPU = devices.Device(FIRST, 0, "RTX", None)
STREAM_TOKENS = 2500


@pytest.fixture
def router(settings: Settings) -> Iterator[LlamaProcess]:
    settings.served_models_dir.mkdir(parents=True)
    for seed, name in enumerate(("one", "two")):
        write_random_gguf(settings.served_models_dir / f"{name}.gguf", context=4096, seed=seed)
    process = LlamaProcess(settings.data_dir, port=settings.chat_port)
    yield process
    process.stop()


@pytest.fixture
def api(settings: Settings, session_factory: SessionFactory, router: LlamaProcess) -> Iterator[httpx.Client]:
    with transaction(session_factory) as session:
        add_version(session, "faq", {"quantization": "F32", "backend_name": "one"})
    with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture
def twin() -> Iterator[StandIn]:
    """A server elsewhere that has the same files."""
    server = StandIn().start()
    yield server
    server.stop()


@contextlib.contextmanager
def another_api(settings: Settings, twin_url: str) -> Iterator[httpx.Client]:
    """The API with a backend that stands in for the router."""
    path = settings.data_dir / "backends.toml"
    path.write_text(f"[twin]\ntype = 'openai'\nurl = '{twin_url}'\nstands_in_for = 'llama_server'\n")
    app = create_app(settings.model_copy(update={"backends": path}))
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"model": "faq", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **fields}
    return client.post("/v1/chat/completions", json=body)


class Answer(threading.Thread):
    """A long answer, asked for and read beside the test; being written once this is made."""

    def __init__(self, client: httpx.Client, router: LlamaProcess) -> None:
        super().__init__()
        assert chat(client).status_code == 200  # so that it is not the loading that we see
        self._client = client
        self.text = ""
        self.start()
        while not router.server.is_answering("one"):
            assert self.is_alive()

    def run(self) -> None:
        answer = chat(self._client, stream=True, max_tokens=STREAM_TOKENS, ignore_eos=True)
        self.text = answer.text


@pytest.fixture
def start_gpu_worker(bench: Bench, tmp_path: Path) -> Callable[..., Any]:
    """Start a worker that has the first of two GPUs, and its queues alone."""
    environment = show_gpus(tmp_path / "bin") | {
        "LATHE_DEVICE": "0",
        "LATHE_SERVING_DEVICE": FIRST,
        **{f"LATHE_{queue}_CONCURRENCY": "0" for queue in ("CPU", "IO", "BULK", "HOOKS")},
    }
    return lambda **changes: bench.start_worker(**(environment | changes))


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def begin_training(bench: Bench, gate: Path) -> str:
    job_id = bench.submit(do={"train": "gated"}, params={"gate": str(gate)}, max_attempts=1)
    bench.wait_for(lambda: bench.began(job_id))
    return job_id


def messages(bench: Bench, job_id: str) -> str:
    with bench.factory() as session:
        query = select(Event.message).where(Event.job_id == job_id, Event.type == "message")
        return "\n".join(session.scalars(query.order_by(Event.id)))


class TestWhileAStepHoldsTheDevice:
    def test_chat_is_refused_and_the_models_come_back(
        self,
        bench: Bench,
        api: httpx.Client,
        router: LlamaProcess,
        start_gpu_worker: Callable[..., Any],
        gate: Path,
        *,
        twin: StandIn,
    ) -> None:
        start_gpu_worker()
        assert chat(api).status_code == 200
        job_id = begin_training(bench, gate)
        assert router.server.loaded_models() == []
        assert "Step train starts on GPU 0 (NVIDIA GeForce RTX 4090)." in messages(bench, job_id)
        bench.wait_for(lambda: "Unloaded one from GPU 0" in messages(bench, job_id))
        bench.wait_for(lambda: bench.job(job_id).steps[0].progress is not None)

        refused = chat(api)
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("server_error", "model", "model_unloaded")
        assert f"step train of {job_id} holds GPU 0" in error["message"]
        assert 900 < int(refused.headers["retry-after"]) <= 1000
        assert refused.headers["x-should-retry"] == "false"
        assert api.post("/generate", json={"prompt": "hi", "model": "faq"}).status_code == 503
        with another_api(bench.settings, twin.url) as helped:
            assert chat(helped).content == WHOLE
        assert json.loads(twin.bodies[-1])["model"] == "one"

        [device] = api.get("/v1/devices").json()["data"]
        assert device["held_by"] | {"since": 0} == {
            "type": "step", "job": job_id, "step": "train", "attempt": 1, "since": 0,
        }  # fmt: skip
        assert (device["serves"], device["unloaded"]) == ("llama_server", ["one"])
        [attempt] = api.get(f"/v1/jobs/{job_id}").json()["steps"][0]["attempts"]
        assert [(device["id"], device["index"]) for device in attempt["devices"]] == [(FIRST, 0)]

        router.server.load("two")  # around the API
        bench.wait_for(lambda: "two had been loaded on GPU 0" in messages(bench, job_id))
        bench.wait_for(lambda: router.server.loaded_models() == [])

        gate.touch()
        bench.wait_for(lambda: bench.job(job_id).steps[0].status == "succeeded")
        bench.wait_for(lambda: sorted(router.server.loaded_models()) == ["one", "two"])  # nobody asked
        assert chat(api).status_code == 200
        [device] = api.get("/v1/devices").json()["data"]
        assert (device["held_by"], device["unloaded"]) == ({"type": "serving", "backend": "llama_server"}, [])

    def test_a_killed_worker_leaves_no_model_behind(
        self,
        bench: Bench,
        api: httpx.Client,
        router: LlamaProcess,
        start_gpu_worker: Callable[..., Any],
        gate: Path,
    ) -> None:
        worker = start_gpu_worker()
        bench.start_worker(LATHE_TRAIN_CONCURRENCY="0", LATHE_GPU_CONCURRENCY="0")  # sweeps
        assert chat(api).status_code == 200
        begin_training(bench, gate)
        assert chat(api).status_code == 503
        worker.kill()
        bench.wait_for(lambda: chat(api).status_code == 200)
        bench.wait_for(lambda: router.server.loaded_models() == ["one"])

    def test_what_is_being_answered_is_let_end(
        self,
        bench: Bench,
        api: httpx.Client,
        router: LlamaProcess,
        start_gpu_worker: Callable[..., Any],
        gate: Path,
    ) -> None:
        start_gpu_worker()
        bench.wait_for(lambda: " ready." in bench.logs())
        gate.touch()
        answer = Answer(api, router)
        job_id = begin_training(bench, gate)
        answer.join(30)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"length"' in answer.text
        assert "cut off" not in messages(bench, job_id)


class TestWhereNothingHasToGo:
    @pytest.mark.parametrize(
        "changes",
        [{"LATHE_DEVICE": "1"}, {"LATHE_SHARE_DEVICE": "true"}],
        ids=["another device", "shared"],
    )
    def test_chat_goes_on(  # noqa: PLR0917 - fixtures
        self,
        bench: Bench,
        api: httpx.Client,
        router: LlamaProcess,
        start_gpu_worker: Callable[..., Any],
        gate: Path,
        changes: dict[str, str],
    ) -> None:
        start_gpu_worker(**changes)
        assert chat(api).status_code == 200
        begin_training(bench, gate)
        assert router.server.loaded_models() == ["one"]
        assert chat(api).status_code == 200
        [device] = api.get("/v1/devices").json()["data"]
        assert device["held_by"]["type"] == "step"
        gate.touch()


class TestPatience:
    def test_an_answer_without_end_is_cut_off_and_said_to_be(
        self, settings: Settings, api: httpx.Client, router: LlamaProcess
    ) -> None:
        noted: list[str] = []
        answer = Answer(api, router)
        impatient = settings.model_copy(update={"unload_patience_seconds": 0.0})
        clearing = Clearing(impatient, router.server, [GPU], noted.extend)
        while not clearing.go_on():
            time.sleep(0.01)
        answer.join(30)
        assert noted == ["one"]
        assert router.server.loaded_models() == []
        assert '"code": "unavailable"' in answer.text
        told = [message["message"] for message in clearing.told()]
        assert told[0].startswith("Unloaded one from GPU 0 (RTX)")
        assert "Answers of one were cut off" in told[1]

    def test_a_server_that_is_away_stops_nobody(self, settings: Settings) -> None:
        clearing = Clearing(settings, LlamaServer("http://127.0.0.1:9"), [GPU], lambda names: None)
        while not clearing.go_on():
            time.sleep(0.1)
        [told] = clearing.told()
        assert told["level"] == "warn"
        assert "is not known: The server that runs this model does not answer." in told["message"]
