"""An installation with projects: an API that needs keys, over a database of its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from api.app import create_app
from db.session import SessionFactory, make_engine, make_session_factory
from db.settings import Settings
from tests.api.serving import serving

OPERATORS_KEY = "the-operators-own-key"


@dataclass
class Keyed:
    """The running API, and its operator's client."""

    app: FastAPI
    url: str
    settings: Settings
    sessions: SessionFactory
    operator: httpx.Client
    ending: ExitStack

    def with_key(self, key: str | None) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)
        return self.ending.enter_context(client)

    def project(self, name: str, **limits: int) -> str:
        answer = self.operator.post("/v1/projects", json={"id": name, **limits})
        assert answer.status_code == 200, answer.text
        return name

    def key(self, project: str = "default", **fields: Any) -> dict[str, Any]:
        answer = self.operator.post("/v1/keys", json={"name": "a test", "project": project, **fields})
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def client(self, project: str, *scopes: str) -> httpx.Client:
        """A client of a project, with a key of its own."""
        made = self.key(project, scopes=list(scopes or ("read", "write", "inference")))
        return self.with_key(made["key"])


@contextmanager
def keyed_api(settings: Settings) -> Iterator[Keyed]:
    """Serve an API whose operator has a key, with these settings otherwise."""
    settings = settings.model_copy(update={"api_key": SecretStr(OPERATORS_KEY)})
    engine = make_engine(settings.require_database_url())
    app = create_app(settings)
    with serving(app) as url, ExitStack() as ending:
        keyed = Keyed(app, url, settings, make_session_factory(engine), httpx.Client(), ending)
        keyed.operator = keyed.with_key(OPERATORS_KEY)
        yield keyed
    engine.dispose()
