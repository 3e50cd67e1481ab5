"""Webhook endpoints, the project's secret, and deliveries, through the API."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from openai import OpenAI
from sqlalchemy import select

from api.app import create_app
from db.models import WebhookDelivery, WebhookEndpoint
from db.queries.jobs import end_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobKind, JobStatus
from db.webhook_events import EventType
from tests.api.conftest import error_of, serving
from tests.receiver import Receiver, receiving
from tests.rows import add_job


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def hooks_url(settings: Settings) -> Iterator[str]:
    """The same API with loopback allowed, and less patience."""
    changes = {"webhook_allowed_networks": [ip_network("127.0.0.0/8")], "webhook_timeout_seconds": 0.5}
    with serving(create_app(settings.model_copy(update=changes))) as url:
        yield url


@pytest.fixture(scope="module")
def hooks(hooks_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=hooks_url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
def openai(hooks_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{hooks_url}/v1", api_key="none", max_retries=0) as client:
        yield client


def create(hooks: httpx.Client, url: str, *types: str) -> dict[str, Any]:
    body = {"name": "bot", "url": url, "event_types": types or ("job.succeeded",)}
    answer = hooks.post("/v1/webhook_endpoints", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def ended(
    factory: SessionFactory,
    kind: JobKind = JobKind.PRETRAIN,
    status: JobStatus = JobStatus.CANCELLED,
    **options: Any,
) -> str:
    with transaction(factory) as session:
        job = add_job(session, kind=kind, **options)
        end_job(session, job, status)
        return job.id


class TestEndpoints:
    def test_the_stock_client_manages_them(self, openai: OpenAI, receiver: Receiver) -> None:
        made = openai.webhooks.create(
            name="bot", url=f"{receiver.url}/ok", event_types=["fine_tuning.job.succeeded"]
        )
        assert made.signing_secret.startswith("whsec_")
        found = openai.webhooks.retrieve(made.id)
        assert (found.object, found.name, found.url) == ("webhook_endpoint", "bot", f"{receiver.url}/ok")
        changed = openai.webhooks.update(made.id, name="other", event_types=["fine_tuning.job.failed"])
        assert (changed.name, changed.event_types) == ("other", ["fine_tuning.job.failed"])
        assert made.id in [row.id for row in openai.webhooks.list(limit=1)]
        assert "job.succeeded" in openai.webhooks.event_types.list().data
        rotated = openai.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        assert rotated.signing_secret != made.signing_secret
        assert openai.webhooks.delete(made.id).object == "webhook_endpoint.deleted"

    def test_a_test_event_is_one_that_the_stock_client_accepts(
        self, openai: OpenAI, receiver: Receiver
    ) -> None:
        made = openai.webhooks.create(
            name="bot", url=f"{receiver.url}/tested", event_types=["fine_tuning.job.failed"]
        )
        result = openai.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        assert (result.success, result.status_code) == (True, 200)
        received = receiver.at("/tested")[-1]
        event = openai.webhooks.unwrap(received.body, received.headers, secret=made.signing_secret)
        assert event.type == "fine_tuning.job.failed"
        openai.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
        openai.webhooks.test(made.id, event_type="fine_tuning.job.failed")
        received = receiver.at("/tested")[-1]
        assert openai.webhooks.unwrap(received.body, received.headers, secret=made.signing_secret)

    def test_a_test_is_logged_and_one_without_an_answer_is_an_error(
        self, hooks: httpx.Client, receiver: Receiver
    ) -> None:
        path = f"/v1/webhook_endpoints/{create(hooks, f'{receiver.url}/slow')['id']}"
        error = error_of(hooks.post(f"{path}/test", json={"event_type": "job.failed"}))
        assert (error["code"], error["param"]) == ("endpoint_unreachable", "url")
        [logged] = hooks.get(f"{path}/deliveries").json()["data"]
        assert (logged["status"], logged["event_type"]) == ("failed", "job.failed")
        assert logged["tries"][0]["error"] == "The receiver did not answer within 0.5 s."

    def test_secrets_never_come_back(self, hooks: httpx.Client, receiver: Receiver) -> None:
        made = create(hooks, f"{receiver.url}/ok")
        path = f"/v1/webhook_endpoints/{made['id']}"
        for answer in (hooks.get(path), hooks.get("/v1/webhook_endpoints"), hooks.post(path, json={})):
            assert answer.status_code == 200
            assert made["signing_secret"] not in answer.text

    def test_an_old_secret_that_leaked_ends_at_once(
        self, hooks: httpx.Client, receiver: Receiver, session_factory: SessionFactory
    ) -> None:
        made = create(hooks, f"{receiver.url}/ok")
        path = f"/v1/webhook_endpoints/{made['id']}/rotate_secret"
        assert hooks.post(path).status_code == 200
        with transaction(session_factory) as session:
            kept = session.get_one(WebhookEndpoint, made["id"])
            assert kept.previous_secret == made["signing_secret"]
            assert kept.previous_secret_until is not None
            assert 23.9 < (kept.previous_secret_until - kept.updated_at).total_seconds() / 3600 < 24.1
        hooks.post(path, json={"keep_old_secret_active_for_24_hours": False})
        with transaction(session_factory) as session:
            assert session.get_one(WebhookEndpoint, made["id"]).previous_secret is None

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"event_types": ["job.started"]}, "event_types[0]"),
            ({"event_types": []}, "event_types"),
            ({"name": ""}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"url": "ftp://example.com"}, "url"),
            ({"url": "http://10.0.0.1/"}, "url"),
            ({"url": "http://[::ffff:169.254.169.254]/"}, "url"),
            ({"secret": "x"}, "secret"),
        ],
    )
    def test_what_is_wrong_is_named(self, hooks: httpx.Client, change: dict[str, Any], param: str) -> None:
        body = {"name": "bot", "url": "http://127.0.0.1/", "event_types": ["job.failed"]} | change
        answer = hooks.post("/v1/webhook_endpoints", json=body)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param

    def test_loopback_is_refused_unless_allowed(self, api: httpx.Client) -> None:
        body = {"name": "bot", "url": "http://127.0.0.1/", "event_types": ["job.failed"]}
        error = error_of(api.post("/v1/webhook_endpoints", json=body))
        assert error["code"] == "address_not_permitted"
        assert "LATHE_WEBHOOK_ALLOWED_NETWORKS" in error["message"]

    @pytest.mark.parametrize("path", ["webhook_endpoints/x", "webhook_deliveries/x"])
    def test_unknown_ids(self, api: httpx.Client, path: str) -> None:
        assert api.get(f"/v1/{path}").status_code == 404


class TestJobs:
    def test_webhook_url_is_checked_and_kept(self, api: httpx.Client, hooks: httpx.Client) -> None:
        body = {"kind": "pretrain", "params": {"name": "p"}, "webhook_url": "http://127.0.0.1:9/hook"}
        assert error_of(api.post("/v1/jobs", json=body))["param"] == "webhook_url"
        job = hooks.post("/v1/jobs", json=body).json()
        assert job["webhook_url"] == body["webhook_url"]
        cancelled = hooks.post(f"/v1/jobs/{job['id']}/cancel").json()
        [delivery] = hooks.get(f"/v1/jobs/{job['id']}/deliveries").json()["data"]
        assert (delivery["event_type"], delivery["status"]) == ("job.cancelled", "pending")
        assert (delivery["url"], delivery["tries"]) == (body["webhook_url"], [])
        assert cancelled["status"] == "cancelled"

    def test_without_anybody_to_tell_there_are_no_deliveries(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        job_id = ended(session_factory)
        assert api.get(f"/v1/jobs/{job_id}/deliveries").json()["data"] == []

    def test_an_end_is_told_to_whoever_chose_it(
        self, hooks: httpx.Client, receiver: Receiver, session_factory: SessionFactory
    ) -> None:
        chosen: dict[str, set[str]] = {
            "job": {EventType.JOB_FAILED, EventType.JOB_SUCCEEDED},
            "fine": {EventType.FINE_TUNE_FAILED},
            "both": {EventType.JOB_FAILED, EventType.FINE_TUNE_FAILED},
        }
        ids = {
            create(hooks, f"{receiver.url}/{name}", *sorted(types))["id"]: name
            for name, types in chosen.items()
        }
        told = {}
        for kind in (JobKind.FINE_TUNE, JobKind.PRETRAIN):
            job_id = ended(session_factory, kind, JobStatus.FAILED, webhook_url="http://127.0.0.1:9/")
            rows = hooks.get(f"/v1/jobs/{job_id}/deliveries").json()["data"]
            names = [(ids.get(row["endpoint_id"]) or row["url"], row["event_type"]) for row in rows]
            told[kind] = sorted((name, event_type) for name, event_type in names if name)
        for endpoint_id in ids:
            hooks.delete(f"/v1/webhook_endpoints/{endpoint_id}")
        anyway = [("both", "job.failed"), ("http://127.0.0.1:9/", "job.failed"), ("job", "job.failed")]
        fine = [("both", "fine_tuning.job.failed"), ("fine", "fine_tuning.job.failed")]
        assert told == {JobKind.FINE_TUNE: sorted(anyway + fine), JobKind.PRETRAIN: anyway}

    def test_a_rolled_back_end_tells_nobody(
        self, hooks: httpx.Client, receiver: Receiver, session_factory: SessionFactory
    ) -> None:
        made = create(hooks, f"{receiver.url}/ok", "job.cancelled")
        with session_factory() as session:
            job = add_job(session)
            end_job(session, job, JobStatus.CANCELLED)
            session.rollback()
        assert hooks.get(f"/v1/webhook_endpoints/{made['id']}/deliveries").json()["data"] == []
        hooks.delete(f"/v1/webhook_endpoints/{made['id']}")

    def test_deleting_the_job_leaves_what_is_still_to_be_told(
        self, hooks: httpx.Client, session_factory: SessionFactory
    ) -> None:
        job_id = ended(session_factory, webhook_url="http://127.0.0.1:9/")
        [delivery] = hooks.get(f"/v1/jobs/{job_id}/deliveries").json()["data"]
        assert hooks.delete(f"/v1/jobs/{job_id}").status_code == 200
        left = hooks.get(f"/v1/webhook_deliveries/{delivery['id']}").json()
        assert (left["job_id"], left["status"]) == (None, "pending")


class TestRedelivery:
    def test_is_the_same_message_again(self, hooks: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = ended(session_factory, webhook_url="http://127.0.0.1:9/")
        with transaction(session_factory) as session:
            row = session.scalars(select(WebhookDelivery).where(WebhookDelivery.job_id == job_id)).one()
            row.status, row.next_attempt_at, row.finished_at = "failed", None, row.created_at
        again = hooks.post(f"/v1/webhook_deliveries/{row.id}/redeliver").json()
        assert (again["status"], again["event_id"]) == ("pending", row.event_id)
        assert again["next_attempt_at"] is not None
        assert again["finished_at"] is None

    def test_not_while_it_is_being_sent(self, hooks: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = ended(session_factory, webhook_url="http://127.0.0.1:9/")
        with transaction(session_factory) as session:
            row = session.scalars(select(WebhookDelivery).where(WebhookDelivery.job_id == job_id)).one()
            row.claimed_until = row.give_up_at
        answer = hooks.post(f"/v1/webhook_deliveries/{row.id}/redeliver")
        assert (answer.status_code, error_of(answer)["code"]) == (409, "delivery_under_way")


class TestProjectSecret:
    def test_is_read_once_and_rotated(self, api: httpx.Client) -> None:
        before = api.get("/v1/webhook_secret").json()
        assert (before["read_at"], "signing_secret" in before) == (None, False)
        secret = api.post("/v1/webhook_secret/read").json()["signing_secret"]
        assert secret.startswith("whsec_")
        again = api.post("/v1/webhook_secret/read")
        assert (again.status_code, error_of(again)["code"]) == (409, "secret_shown")
        rotated = api.post("/v1/webhook_secret/rotate_secret").json()["signing_secret"]
        assert rotated != secret
        assert rotated not in api.get("/v1/webhook_secret").text
