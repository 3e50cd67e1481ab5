"""Requests that come twice: by a key, by OpenAI's client itself, all at once, and across a killed API."""

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select, text

from api.app import create_app
from db.models import Answer, Job
from db.queries.answers import forget_answers
from db.session import SessionFactory, transaction
from db.settings import Settings
from serving.local_port import free_port
from tests.api.conftest import error_of, serving, upload
from tests.nursery import APIS, Child

# POSTs that create no row, or not from JSON. Every other one is to be repeatable.
CREATE_NOTHING = {
    "/v1/keys",  # whose answer is not to be kept
    "/v1/keys/{key_id}/revoke",
    "/v1/projects/{project_id}",
    "/v1/projects/{project_id}/archive",
    "/v1/projects/{project_id}/restore",
    "/v1/vector_stores/{vector_store_id}",
    "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel",
    "/v1/vector_stores/{vector_store_id}/files/{file_id}",
    "/v1/vector_stores/{vector_store_id}/search",
    "/generate",
    "/agenerate",
    "/embeddings",
    "/v1/models/{model:path}/load",
    "/v1/models/{model:path}/unload",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",  # which asks a model, whose answer comes as a stream
    "/v1/responses/{response_id}/cancel",
    "/v1/embeddings",
    "/v1/files",
    "/v1/batches/{batch_job_id}/cancel",
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/cancel",
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/pause",
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/resume",
    "/v1/uploads/{upload_id}/cancel",
    "/v1/uploads/{upload_id}/complete",
    "/v1/uploads/{upload_id}/parts",  # of which only those count that `complete` names
    "/v1/jobs/{job_id}/cancel",
    "/v1/jobs/{job_id}/pause",
    "/v1/jobs/{job_id}/resume",
    "/v1/jobs/{job_id}/retry",
    "/v1/webhook_deliveries/{delivery_id}/redeliver",
    "/v1/webhook_endpoints/{endpoint_id}",
    "/v1/webhook_endpoints/{endpoint_id}/rotate_secret",
    "/v1/webhook_endpoints/{endpoint_id}/test",
    "/v1/webhook_secret/read",
    "/v1/webhook_secret/rotate_secret",
}


def body_of(name: str = "", **params: Any) -> dict[str, Any]:
    return {"kind": "pretrain", "params": {"name": name or f"p-{secrets.token_hex(6)}", **params}}


def post(api: httpx.Client, body: dict[str, Any], key: str | None = None, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if key is not None:
        sent["Idempotency-Key"] = key
    return api.post("/v1/jobs", json=body, headers=sent)


def jobs_of(factory: SessionFactory, body: dict[str, Any]) -> list[str]:
    with factory() as session:
        named = Job.params["name"].astext == body["params"]["name"]
        return list(session.scalars(select(Job.id).where(named)))


def age(factory: SessionFactory, body: str, column: str, interval: str) -> None:
    """Let an answer be older than it is, as if the time had passed."""
    with transaction(factory) as session:
        session.execute(
            text(f"UPDATE answers SET {column} = {column} - CAST(:by AS interval) WHERE body = :body"),  # noqa: S608
            {"by": interval, "body": body},
        )


def test_every_post_that_creates_a_row_is_repeatable(settings: Settings) -> None:
    posts: dict[str, APIRoute] = {}
    modules = [module for name, module in sys.modules.items() if name.endswith("routes")]
    for router in (module.router for module in modules if hasattr(module, "router")):
        posts |= {route.path: route for route in router.routes if "POST" in route.methods}
    creating = {path for path, route in posts.items() if getattr(route.endpoint, "is_repeatable", False)}
    assert set(posts) - creating == CREATE_NOTHING
    assert "/v1/jobs" in creating


class TestKey:
    def test_repeats_the_answer_and_creates_one_row(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        body = body_of()
        first, second = post(api, body, "one"), post(api, body, "one")
        assert first.status_code == second.status_code == 202
        assert first.content == second.content
        assert "idempotent-replayed" not in first.headers
        assert second.headers["idempotent-replayed"] == "true"
        assert jobs_of(session_factory, body) == [first.json()["id"]]

    def test_takes_the_same_fields_in_another_order_for_the_same_body(self, api: httpx.Client) -> None:
        name = f"p-{secrets.token_hex(6)}"
        bodies = (
            f'{{"kind": "pretrain", "params": {{"name": "{name}", "steps": 20}}}}',
            f'{{"params":{{"steps":20,"name":"{name}"}},"kind":"pretrain"}}',
        )
        headers = {"Idempotency-Key": name, "content-type": "application/json"}
        answers = [api.post("/v1/jobs", content=body, headers=headers) for body in bodies]
        assert answers[0].content == answers[1].content

    def test_with_another_body_is_a_conflict_that_is_not_to_be_tried_again(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        key, other = secrets.token_hex(8), body_of()
        first = post(api, body_of(), key)
        answer = post(api, other, key)
        assert first.status_code == 202
        assert answer.status_code == 409
        assert answer.headers["x-should-retry"] == "false"
        assert error_of(answer)["code"] == "idempotency_key_reused"
        assert error_of(answer)["param"] == "Idempotency-Key"
        assert jobs_of(session_factory, other) == []

    def test_another_key_is_another_request(self, api: httpx.Client) -> None:
        body = body_of()
        assert post(api, body, "a").json()["id"] != post(api, body, "b").json()["id"]

    @pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "schlüssel".encode().decode("latin-1")])
    def test_that_is_too_long_or_cannot_be_printed_is_refused(
        self, api: httpx.Client, session_factory: SessionFactory, key: str
    ) -> None:
        body = body_of()
        answer = api.post("/v1/jobs", json=body, headers=[(b"idempotency-key", key.encode("latin-1"))])
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "Idempotency-Key"
        assert jobs_of(session_factory, body) == []

    def test_of_255_characters_is_taken(self, api: httpx.Client) -> None:
        body, key = body_of(), secrets.token_hex(4).ljust(255, "~")
        assert post(api, body, key).content == post(api, body, key).content

    def test_is_free_after_an_error(self, api: httpx.Client) -> None:
        key, name = secrets.token_hex(8), f"p-{secrets.token_hex(6)}"
        refused = post(api, body_of(name, training_file="file-missing"), key)
        assert refused.status_code == 400
        assert post(api, body_of(name, training_file=upload(api)), key).status_code == 202

    def test_is_forgotten_after_a_day(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        body = body_of()
        first = post(api, body, "day")
        age(session_factory, first.text, "expires_at", "23 hours 59 minutes")
        assert post(api, body, "day").content == first.content
        age(session_factory, first.text, "expires_at", "1 minute")
        second = post(api, body, "day")
        assert second.status_code == 202
        assert second.json()["id"] != first.json()["id"]
        assert post(api, body, "day").content == second.content

    def test_may_come_with_another_body_after_a_day(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        first = post(api, body_of(), "reborn")
        age(session_factory, first.text, "expires_at", "24 hours")
        assert post(api, body_of(), "reborn").status_code == 202

    def test_what_is_forgotten_is_removed(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        old, new = post(api, body_of(), secrets.token_hex(8)), post(api, body_of(), secrets.token_hex(8))
        age(session_factory, old.text, "expires_at", "24 hours")
        with transaction(session_factory) as session:
            forget_answers(session)
            kept = set(session.scalars(select(Answer.body)))
        assert old.text not in kept
        assert new.text in kept


class TestRetryCount:
    def test_gets_the_answer_of_the_request_before(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        body = body_of()
        first = post(api, body, x_stainless_retry_count="0")
        again = [post(api, body, x_stainless_retry_count=count) for count in ("1", "2")]
        assert [answer.content for answer in again] == [first.content, first.content]
        assert [answer.status_code for answer in again] == [202, 202]
        assert len(jobs_of(session_factory, body)) == 1

    def test_of_what_never_arrived_creates_the_row(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        body = body_of()
        first = post(api, body, x_stainless_retry_count="1")
        assert post(api, body, x_stainless_retry_count="2").content == first.content
        assert len(jobs_of(session_factory, body)) == 1

    def test_with_another_body_is_another_request(self, api: httpx.Client) -> None:
        ids = {post(api, body_of(), x_stainless_retry_count="1").json()["id"] for _ in range(2)}
        assert len(ids) == 2

    @pytest.mark.parametrize("count", ["0", "-1", "x", ""])
    def test_that_is_no_repetition_creates_another_row(
        self, api: httpx.Client, session_factory: SessionFactory, count: str
    ) -> None:
        body = body_of()
        post(api, body)
        post(api, body, x_stainless_retry_count=count)
        assert len(jobs_of(session_factory, body)) == 2

    def test_repeats_the_later_of_two_equal_requests(self, api: httpx.Client) -> None:
        body = body_of()
        _, later = post(api, body), post(api, body)
        assert post(api, body, x_stainless_retry_count="1").content == later.content

    def test_looks_back_ten_minutes(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        body = body_of()
        first = post(api, body)
        age(session_factory, first.text, "created_at", "9 minutes 50 seconds")
        assert post(api, body, x_stainless_retry_count="1").content == first.content
        age(session_factory, first.text, "created_at", "11 seconds")
        assert post(api, body, x_stainless_retry_count="1").json()["id"] != first.json()["id"]


async def _all_at_once(urls: list[str], number: int, body: Any, headers: Any) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=number, max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
        posts = (
            client.post(f"{urls[n % len(urls)]}/v1/jobs", json=body, headers=headers) for n in range(number)
        )
        return list(await asyncio.gather(*posts))


class TestManyAtOnce:
    @pytest.mark.parametrize("number", [200, pytest.param(1000, marks=pytest.mark.slow)])
    def test_with_one_key_get_one_answer_from_two_processes(
        self, api_url: str, settings: Settings, session_factory: SessionFactory, number: int
    ) -> None:
        """Each application has its own turns, as processes have; what they share is the database."""
        body, headers = body_of(), {"Idempotency-Key": secrets.token_hex(8)}
        with serving(create_app(settings)) as other:
            answers = asyncio.run(_all_at_once([api_url, other], number, body, headers))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.content for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        assert len(jobs_of(session_factory, body)) == 1

    def test_repetitions_wait_for_the_request_that_they_repeat(
        self, api_url: str, session_factory: SessionFactory
    ) -> None:
        body, headers = body_of(), {"x-stainless-retry-count": "1"}
        answers = asyncio.run(_all_at_once([api_url], 100, body, headers))
        assert len({answer.content for answer in answers}) == 1
        assert len(jobs_of(session_factory, body)) == 1


@contextmanager
def api_process(settings: Settings) -> Iterator[tuple[str, Child]]:
    port = free_port()
    environment = os.environ | {
        "DATABASE_URL": settings.require_database_url(),
        "REDIS_URL": settings.require_redis_url(),
        "LATHE_DATA_DIR": str(settings.data_dir),
        "LATHE_API_PORT": str(port),
    }
    with Path(os.devnull).open("wb") as log:
        process = APIS.start(["-m", "api"], env=environment, log=log)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
    try:
        while True:
            try:
                httpx.get(f"{url}/healthz", trust_env=False)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the API did not start"
                time.sleep(0.05)
        yield url, process
    finally:
        process.kill()
        process.wait(10)


def _waits_for_answers(factory: SessionFactory) -> bool:
    waiting = text(
        "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation "
        "WHERE relname = 'answers' AND NOT granted"
    )
    with factory() as session:
        return session.scalars(waiting).one() > 0


class TestKilledAPI:
    def test_leaves_the_row_and_the_answer_or_neither(
        self, settings: Settings, session_factory: SessionFactory
    ) -> None:
        body, headers = body_of(), {"Idempotency-Key": secrets.token_hex(8)}

        async def killed_before_commit(url: str, process: Child) -> None:
            async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                sent = asyncio.create_task(client.post(f"{url}/v1/jobs", json=body, headers=headers))
                deadline = time.monotonic() + 20
                while not _waits_for_answers(session_factory):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                with pytest.raises(httpx.TransportError):
                    await sent

        with api_process(settings) as (url, process), transaction(session_factory) as session:
            # It can read answers, and write the job, but not keep its answer: there it is killed.
            session.execute(text("LOCK TABLE answers IN SHARE ROW EXCLUSIVE MODE"))
            asyncio.run(killed_before_commit(url, process))
        assert jobs_of(session_factory, body) == []
        with api_process(settings) as (url, process):
            first = httpx.post(f"{url}/v1/jobs", json=body, headers=headers, trust_env=False, timeout=70)
            process.send_signal(signal.SIGKILL)
        with api_process(settings) as (url, _):
            second = httpx.post(f"{url}/v1/jobs", json=body, headers=headers, trust_env=False, timeout=30)
        assert first.status_code == 202
        assert second.content == first.content
        assert jobs_of(session_factory, body) == [first.json()["id"]]
