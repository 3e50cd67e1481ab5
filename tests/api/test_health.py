"""Health: alive, and ready with its parts."""

from importlib.metadata import version

import httpx

from api.app import create_app
from db.queries.workers import sign_in, sign_out
from db.session import SessionFactory, transaction
from db.settings import Settings
from tests.api.conftest import error_of, serving

QUEUES = ["train", "gpu", "cpu", "io", "bulk", "ask", "hooks"]


def test_alive(api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "ok", "version": version("lathe")}


class TestReady:
    def test_needs_a_live_worker_for_each_queue(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        with transaction(session_factory) as session:
            sign_in(session, name="w", host="h", pid=1, slots=dict.fromkeys(QUEUES[:-1], 1))
        lacking = api.get("/readyz")
        assert lacking.status_code == 503
        parts = lacking.json()["parts"]
        assert [name for name, part in parts.items() if not part["ok"]] == ["worker:hooks"]
        with transaction(session_factory) as session:
            sign_in(session, name="w", host="h", pid=1, slots=dict.fromkeys(QUEUES, 1))
        ready = api.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        with transaction(session_factory) as session:
            sign_out(session, "w")

    def test_model_servers_are_shown_but_not_required(
        self, settings: Settings, session_factory: SessionFactory
    ) -> None:
        with transaction(session_factory) as session:
            sign_in(session, name="w2", host="h", pid=1, slots=dict.fromkeys(QUEUES, 1))
        app = create_app(settings.model_copy(update={"chat_server_url": "http://127.0.0.1:9"}))
        with serving(app) as url:
            answer = httpx.get(f"{url}/readyz", trust_env=False)
        assert answer.status_code == 200
        assert answer.json()["parts"]["chat_server"]["ok"] is False
        with transaction(session_factory) as session:
            sign_out(session, "w2")


def test_without_database_and_broker_it_lives_and_says_what_is_missing(settings: Settings) -> None:
    told = {
        "database_url": Settings(database_url="postgresql://u:p@127.0.0.1:9/x").database_url,
        "redis_url": Settings(redis_url="redis://127.0.0.1:9/0").redis_url,
    }
    app = create_app(settings.model_copy(update=told))
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=20) as api:
        assert api.get("/healthz").status_code == 200
        parts = api.get("/readyz").json()["parts"]
        assert not parts["database"]["ok"]
        assert not parts["broker"]["ok"]
        answer = api.get("/v1/jobs")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert error_of(answer)["code"] == "database_unavailable"
