"""The API as it runs: under uvicorn, on a port, over a database and a broker of the test's own."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from api.app import create_app
from db.session import SessionFactory, make_engine, make_session_factory, transaction
from db.settings import Settings
from tests.api.keyed import Keyed, keyed_api
from tests.api.model_server import ModelServer
from tests.api.serving import serving
from tests.conftest import PostgresServer
from tests.rows import add_version
from tests.trainings import Training, in_training

FAQ = b"question,answer\n" + b"".join(b"What is %d?,It is %d.\n" % (n, n * n) for n in range(20))
CLUSTERS = """
[lab]
address = "10.0.0.5:6379"
num_workers = 4

[theirs]
address = "10.0.0.6:6379"
num_workers = 2
projects = ["others"]
"""


@pytest.fixture(scope="session")
def backend() -> Iterator[tuple[ModelServer, str]]:
    """The stand-in for what serves models, and its address."""
    server = ModelServer()
    with serving(server) as url:
        yield server, url


@pytest.fixture(scope="session")
def settings(
    postgres_server: PostgresServer,
    migrated_template: str,
    valkey_url: str,
    backend: tuple[ModelServer, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """One installation for all of these tests: each makes rows of its own, and looks at no others."""
    server, url = backend
    clusters = tmp_path_factory.mktemp("operator") / "clusters.toml"
    clusters.write_text(CLUSTERS)
    postgres_server.execute(f"CREATE DATABASE api TEMPLATE {migrated_template} STRATEGY file_copy")
    return Settings(
        database_url=postgres_server.url("api"),
        redis_url=valkey_url,
        data_dir=tmp_path_factory.mktemp("api"),
        chat_server_url=url,
        chat_server_key=server.key,
        embedding_server_url=url,
        embedding_server_key=server.key,
        ray_clusters=clusters,
        max_file_bytes=4 * 1024 * 1024,
        max_body_bytes=256 * 1024,
    )


@pytest.fixture(scope="session")
def session_factory(settings: Settings) -> Iterator[SessionFactory]:
    engine = make_engine(settings.require_database_url())
    yield make_session_factory(engine)
    engine.dispose()


@pytest.fixture(scope="session")
def served_app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture(scope="session")
def api_url(served_app: FastAPI) -> Iterator[str]:
    with serving(served_app) as url:
        yield url


@pytest.fixture(scope="session")
def api(api_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api_url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def keyed(
    settings: Settings,
    postgres_server: PostgresServer,
    migrated_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Keyed]:
    """An installation that needs keys, with projects; all else as `settings`."""
    postgres_server.execute(f"CREATE DATABASE keyed TEMPLATE {migrated_template} STRATEGY file_copy")
    own = {"database_url": postgres_server.url("keyed"), "data_dir": tmp_path_factory.mktemp("keyed")}
    with keyed_api(Settings.model_validate({**settings.model_dump(), **own})) as keyed:
        yield keyed


Publish = Callable[..., str]


@pytest.fixture
def publish(
    session_factory: SessionFactory, settings: Settings, backend: tuple[ModelServer, str], served_app: FastAPI
) -> Publish:
    """Write the rows and the files of a model that was published, as a finished job does.

    The API hears of it in a moment; here nobody asks before.
    """
    model_server, _ = backend

    def write(
        name: str,
        *,
        quantizations: tuple[str, ...] = ("Q4_K_M",),
        backend_name: str = "",
        weights: str | None = None,
        backend: str = "llama_server",
    ) -> str:
        settings.served_models_dir.mkdir(parents=True, exist_ok=True)
        with transaction(session_factory) as session:
            named = {"backend_name": backend_name} if backend_name else {}
            files = ({"quantization": each, "backend": backend, **named} for each in quantizations)
            version = add_version(session, name, *files, weights=weights)
            names = [file.backend_name for file in version.files]
        for each in names:
            (settings.served_models_dir / f"{each}.gguf").write_bytes(b"GGUF")
        model_server.models.update(names)
        if hasattr(served_app.state, "services"):  # it has been asked before
            served_app.state.services.destinations.forget()
        return names[0]

    return write


def upload(api: httpx.Client, content: bytes = FAQ, name: str = "faq.csv") -> str:
    answer = api.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
    assert answer.status_code == 200, answer.text
    file_id: str = answer.json()["id"]
    return file_id


def submit(api: httpx.Client, **params: Any) -> dict[str, Any]:
    """Submit a fine-tune; the job as it was answered."""
    params = {"base_model": "org/base", "training_file": upload(api), "name": "faq"} | params
    answer = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


@pytest.fixture
def training(api: httpx.Client, settings: Settings, session_factory: SessionFactory) -> Training:
    """A fine-tune that has come as far as its training."""
    return in_training(submit(api)["id"], settings.storage_root, session_factory)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, whose shape is the same for all."""
    body = answer.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = body["error"]
    return error
