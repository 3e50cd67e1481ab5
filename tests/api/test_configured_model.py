"""The model that lathe.yaml names: queued once, told how far it is, and asked by default."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from api.app import create_app
from db.lathe_yaml import ConfiguredModel
from db.models import Job
from db.queries.jobs import end_job, get_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobStatus, StepStatus
from deploy.local.fetching import Fetching
from tests.api.conftest import Publish, error_of
from tests.api.keyed import Keyed, keyed_api
from tests.api.model_server import CHUNKS, ModelServer
from tests.api.serving import serving
from tests.waiting import wait_until

NUMBERS = count()
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def model() -> ConfiguredModel:
    """One that no other test has."""
    return ConfiguredModel(
        name=f"configured-{next(NUMBERS)}",
        hub="org/some",
        filename="some-Q4.gguf",
        prompt_format="vicuna",
        sampling={"seed": 7, "repeat_last_n": 64},
    )


class Started:
    """Installations that start over the same rows."""

    def __init__(self, settings: Settings, factory: SessionFactory, model: ConfiguredModel) -> None:
        self.settings = settings.model_copy(update={"configured_model": model})
        self.model, self._factory = model, factory

    @contextmanager
    def api(self) -> Iterator[httpx.Client]:
        with (
            serving(create_app(self.settings)) as url,
            httpx.Client(base_url=url, trust_env=False, timeout=20) as api,
        ):
            wait_until(lambda: self.jobs() > 0)
            yield api

    def jobs(self) -> int:
        with transaction(self._factory) as session:
            query = select(func.count()).select_from(Job).where(Job.params["name"].astext == self.model.name)
            return session.scalars(query).one()

    def newest(self) -> str:
        with transaction(self._factory) as session:
            query = select(Job.id).where(Job.params["name"].astext == self.model.name)
            return session.scalars(query.order_by(Job.id.desc())).first() or ""

    @contextmanager
    def changed(self) -> Iterator[tuple[Any, Job]]:
        with transaction(self._factory) as session:
            yield session, get_job(session, self.newest(), project_id="default", lock=True)

    def fail(self) -> None:
        with self.changed() as (session, job):
            end_job(session, job, JobStatus.FAILED, error={"code": "x", "message": "No such repository."})

    def run(self, progress: dict[str, Any]) -> None:
        with self.changed() as (session, job):
            move(session, job, JobStatus.RUNNING)
            move(session, job.steps[0], StepStatus.RUNNING)
            job.steps[0].progress = progress

    def succeed(self) -> None:
        with self.changed() as (session, job):
            move(session, job, JobStatus.RUNNING)
            end_job(session, job, JobStatus.SUCCEEDED)


@pytest.fixture
def started(settings: Settings, session_factory: SessionFactory, model: ConfiguredModel) -> Started:
    return Started(settings, session_factory, model)


class TestFetching:
    def test_is_queued_once_by_several_processes_and_over_restarts(self, started: Started) -> None:
        with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
            list(pool.map(lambda _: stack.enter_context(started.api()), range(4)))
        with started.api() as api:
            job = api.get(f"/v1/jobs/{started.newest()}").json()
        assert started.jobs() == 1
        assert job["kind"] == "pull"
        assert job["params"]["source"]["hub"] == "org/some"
        assert job["params"]["source"]["filename"] == "some-Q4.gguf"
        assert (job["params"]["name"], job["params"]["prompt_format"]) == (started.model.name, "vicuna")

    def test_one_that_failed_is_tried_again_by_the_next_start_alone(self, started: Started) -> None:
        with started.api() as api:
            started.fail()
            answer = api.post("/generate", json={"prompt": "Hello"})
            assert (answer.status_code, started.jobs()) == (404, 1)
            message = error_of(answer)["message"]
            assert "No such repository." in message
            assert f"lathe retry {started.newest()}" in message
        with started.api():
            wait_until(lambda: started.jobs() == 2)

    def test_another_source_is_fetched_anew(self, started: Started, model: ConfiguredModel) -> None:
        with started.api():
            pass
        changed = model.model_copy(update={"filename": "some-Q8.gguf"})
        started.settings = started.settings.model_copy(update={"configured_model": changed})
        with started.api():
            wait_until(lambda: started.jobs() == 2)

    def test_what_is_there_is_not_fetched_again(self, started: Started, publish: Publish) -> None:
        with started.api():
            started.succeed()
        publish(started.model.name)
        with started.api() as api:
            assert api.post("/generate", json={"prompt": "Hello"}).status_code == 200
        assert started.jobs() == 1

    def test_what_cannot_be_queued_stops_no_start(
        self, started: Started, model: ConfiguredModel, api: httpx.Client
    ) -> None:
        reserved = model.model_copy(update={"name": "tiny"})
        settings = started.settings.model_copy(update={"configured_model": reserved})
        with serving(create_app(settings)) as url:
            assert httpx.get(f"{url}/healthz", trust_env=False, timeout=20).status_code == 200


class TestAsking:
    def test_until_it_is_there_says_how_far_it_is(self, started: Started) -> None:
        prompt = {"prompt": "Hello"}
        asked: dict[str, dict[str, Any]] = {
            "/generate": prompt,
            "/agenerate": prompt,
            "/v1/chat/completions": {**HELLO, "model": started.model.name},
            "/v1/completions": {**prompt, "model": started.model.name},
        }
        with started.api() as api:
            for path, body in asked.items():
                answer = api.post(path, json=body)
                assert (answer.status_code, error_of(answer)["code"]) == (503, "model_downloading")
                assert "queued" in error_of(answer)["message"]
            started.run({"done": 1_200_000_000, "total": 3_500_000_000, "unit": "B", "eta_seconds": 80})
            for path, body in asked.items():
                answer = api.post(path, json=body)
                assert "1.2 of 3.5 GB (34 %), about 80 s left" in error_of(answer)["message"]
                assert 2 <= int(answer.headers["retry-after"]) <= 60

    def test_is_asked_by_default_and_answered_as_the_earlier_api_did(
        self, started: Started, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        with started.api() as api:
            served = publish(started.model.name)
            publish("published-later")
            assert api.post("/generate", json={"prompt": "Hello", "params": {"temp": 0.2}}).json() == "Answer"
            assert json.loads(backend[0].bodies[-1]) == {
                "model": served, "messages": HELLO["messages"], "temperature": 0.2,
                "seed": 7, "repeat_last_n": 64,
            }  # fmt: skip
            named = api.post("/generate", json={"prompt": "x", "model": "published-later"}).json()
            assert (named["text"], named["model"]) == ("Answer", "published-later")
            assert set(json.loads(backend[0].bodies[-1])) == {"model", "messages"}
            streamed = api.post("/agenerate", json={"prompt": "Hello", "params": {"seed": 3}})
        assert streamed.text.count("data: ") == CHUNKS
        assert json.loads(backend[0].bodies[-1])["seed"] == 3

    def test_other_projects_have_none(self, keyed: Keyed, settings: Settings, model: ConfiguredModel) -> None:
        told = {"database_url": keyed.settings.database_url, "data_dir": keyed.settings.data_dir}
        with keyed_api(settings.model_copy(update={**told, "configured_model": model})) as ours:
            ours.project("elsewhere")
            answer = ours.client("elsewhere").post("/generate", json={"prompt": "Hello"})
            assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_ready")
            answer = ours.client("elsewhere").post("/generate", json={"prompt": "x", "model": model.name})
            assert error_of(answer)["code"] == "model_not_found"


class TestTelling:
    def test_the_stacks_log_is_told_how_far_it_is(
        self, started: Started, settings: Settings, publish: Publish
    ) -> None:
        fetching = Fetching(started.model, settings.require_database_url())
        assert list(fetching.news()) == []
        with started.api():
            name, job = started.model.name, started.newest()
            assert list(fetching.news()) == [
                f"model {name}: fetched from org/some by job {job}", f"model {name}: queued",
            ]  # fmt: skip
            started.run({"done": 5_000_000, "total": 10_000_000, "unit": "B"})
            assert list(fetching.news()) == [f"model {name}: pull, 5.0 of 10.0 MB (50 %)"]
            assert list(fetching.news()) == []
            publish(name)
            with started.changed() as (session, row):
                row.steps[0].status = StepStatus.SUCCEEDED
                end_job(session, row, JobStatus.SUCCEEDED)
        assert list(fetching.news()) == [f"model {name}: answers"]
        assert fetching.is_over

    def test_a_failure_is_told_with_its_reason(self, started: Started, settings: Settings) -> None:
        fetching = Fetching(started.model, settings.require_database_url())
        with started.api():
            started.fail()
        assert "No such repository." in next(fetching.news())
        assert fetching.is_over

    def test_nothing_configured_is_nothing_to_tell(self, settings: Settings) -> None:
        assert Fetching(None, settings.require_database_url()).is_over
