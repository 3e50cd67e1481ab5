"""A desk to ask at: the API over real rows, and a stand-in for the model's server."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pydantic import SecretStr

from api.app import create_app
from db.models import Project
from db.queries.collections import create_collection
from db.session import SessionFactory, transaction
from db.settings import Settings
from tests.api.answers.answering_server import AnsweringServer, rendered
from tests.api.conftest import Publish, serving
from tests.documents import pdf_of
from tests.embedding_server import EmbeddingStandIn
from tests.library import Library

QUESTION = "How many days of holidays are there a year?"
PAGES = [
    "Lathes turn metal. The chuck holds the workpiece while the spindle rotates. Wear goggles at all times "
    "and keep sleeves away from the chuck, for it does not forgive. Report every crack in a tool.",
    "Holidays are thirty days a year. Ask the office two weeks before you leave. Days of holidays that are "
    "left in December may be taken until the end of March of the year that follows.",
    "Coffee is free in the kitchen. The machine is cleaned on Fridays by whoever drank the last cup of it. "
    "Lunch is served at noon, and on Thursdays there is soup of lentils.",
]


@dataclass
class Desk:
    """The API, and what it stands on. `server` is the models', as new."""

    api: httpx.Client
    server: AnsweringServer
    library: Library
    publish: Publish
    sessions: SessionFactory

    def ready(self, name: str, **how: Any) -> str:
        """Publish a model that the server has; its name there."""
        served = self.publish(name, **how)
        self.server.models.add(served)
        return served

    def fill(
        self, name: str, files: dict[str, bytes | str], *, project: str = "default"
    ) -> tuple[str, list[str]]:
        """Make a collection of files; its id, and theirs."""
        with transaction(self.sessions) as session:
            if session.get(Project, project) is None:
                session.add(Project(id=project))
                session.flush()
            collection = create_collection(session, project_id=project, name=name)
            put = [self.library.put(session, collection, filename, text) for filename, text in files.items()]
            return collection.id, [document.file_id for document in put]

    def ask(self, model: str, question: str = QUESTION, **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": question}], **more}
        return self.api.post("/v1/chat/completions", json=body)

    def said(self) -> str:
        """The prompt that the model got last."""
        return rendered(self.server.asked[-1]["messages"])


@pytest.fixture(scope="session")
def embeddings() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def answering() -> Iterator[tuple[AnsweringServer, str]]:
    server = AnsweringServer()
    with serving(server) as url:
        yield server, url


@pytest.fixture(scope="session")
def app_settings(
    settings: Settings, embeddings: EmbeddingStandIn, answering: tuple[AnsweringServer, str]
) -> Settings:
    server, url = answering
    changes = {
        "chat_server_url": url,
        "chat_server_key": SecretStr(server.key),
        "embedding_server_url": embeddings.url,
        "ollama_host": url,
    }
    return settings.model_copy(update=changes)


@pytest.fixture(scope="session")
def app_url(app_settings: Settings) -> Iterator[str]:
    with serving(create_app(app_settings)) as address:
        yield address


@pytest.fixture
def library(embeddings: EmbeddingStandIn, tmp_path: Path) -> Library:
    return Library(tmp_path, embeddings)


@pytest.fixture
def desk(
    app_url: str,
    answering: tuple[AnsweringServer, str],
    library: Library,
    publish: Publish,
    session_factory: SessionFactory,
) -> Iterator[Desk]:
    server, _ = answering
    server.window, server.says = 2000, "Thirty days [1]."
    server.asked.clear()
    with httpx.Client(base_url=app_url, timeout=20, trust_env=False) as client:
        yield Desk(client, server, library, publish, session_factory)


@pytest.fixture
def client(app_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with OpenAI(base_url=f"{app_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def handbook() -> bytes:
    return pdf_of(PAGES, outline={"Work": 1, "Leave": 2, "Kitchen": 3})
