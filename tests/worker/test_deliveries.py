"""Deliveries by real workers to real receivers on loopback."""

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest
from openai import OpenAI
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from db.models import DeliveryTry, WebhookDelivery, WebhookEndpoint
from db.queries.deliveries import list_deliveries, redeliver
from db.queries.jobs import end_job
from db.queries.webhooks import add_endpoint, project_secret, rotate
from db.session import SessionFactory, transaction
from db.states import JobStatus
from db.webhook_events import DeliveryStatus
from tests.receiver import Receiver, receiving
from tests.rows import add_job
from webhooks.sending import Answer
from webhooks.signing import new_secret
from worker.delivery_claim import (
    BACKOFF_MAX_SECONDS,
    RECEIVER_CONCURRENCY,
    claim_delivery,
    delay_before,
    has_due_delivery,
    note_answer,
)

if TYPE_CHECKING:
    from tests.worker.conftest import Bench


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def hooks(bench: "Bench") -> "Bench":
    """A bench whose workers reach loopback, and try again soon."""
    changes: dict[str, Any] = {
        "webhook_allowed_networks": [ip_network("127.0.0.0/8")],
        "webhook_backoff_seconds": 0.2,
        "webhook_timeout_seconds": 3.0,
        "hooks_concurrency": 4,
    }
    bench.settings = bench.settings.model_copy(update=changes)
    return bench


def endpoint(session: Session, url: str, secret: str = "") -> WebhookEndpoint:
    return add_endpoint(
        session,
        project_id="default",
        name="bot",
        url=url,
        event_types=["job.cancelled"],
        secret=secret or new_secret(),
    )


def end(session: Session, *, webhook_url: str | None = None) -> str:
    job = add_job(session, webhook_url=webhook_url)
    end_job(session, job, JobStatus.CANCELLED)
    return job.id


def deliveries(factory: SessionFactory, **of: str) -> list[WebhookDelivery]:
    with factory() as session:
        return list_deliveries(session, limit=100, **of)[0]  # type: ignore[arg-type]


def all_are(factory: SessionFactory, status: str, **of: str) -> bool:
    found = deliveries(factory, **of)
    return bool(found) and {row.status for row in found} == {status}


class TestWorker:
    def test_tells_of_a_job_that_it_ran_and_retries_what_fails(
        self, hooks: "Bench", receiver: Receiver
    ) -> None:
        with transaction(hooks.factory) as session:
            secret = project_secret(session, "default", fallback=new_secret()).secret
        hooks.start_worker()
        job_id = hooks.submit(webhook_url=f"{receiver.url}/500-then-ok")
        assert hooks.ended(job_id).status == "succeeded"
        hooks.wait_for(lambda: all_are(hooks.factory, "succeeded", job_id=job_id))
        [delivery] = deliveries(hooks.factory, job_id=job_id)
        assert [(one.number, one.status_code, bool(one.error)) for one in delivery.log] == [
            (1, 500, True), (2, 200, False),
        ]  # fmt: skip
        first, second = receiver.at("/500-then-ok")
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery.event_id
        with OpenAI(api_key="none", base_url="http://127.0.0.1:9") as client:
            event = client.webhooks.unwrap(second.body, second.headers, secret=secret)
        assert json.loads(second.body) == {
            "id": delivery.event_id, "object": "event", "created_at": event.created_at,
            "type": "job.succeeded", "data": {"id": job_id},
        }  # fmt: skip
        self._redelivers(hooks, receiver, delivery)

    def _redelivers(self, hooks: "Bench", receiver: Receiver, delivery: WebhookDelivery) -> None:
        with transaction(hooks.factory) as session:
            redeliver(session, session.get_one(WebhookDelivery, delivery.id))
        hooks.wait_for(lambda: len(receiver.at("/500-then-ok")) == 3)
        assert receiver.at("/500-then-ok")[2].headers["webhook-id"] == delivery.event_id
        hooks.wait_for(lambda: all_are(hooks.factory, "succeeded", job_id=str(delivery.job_id)))

    def test_a_slow_and_a_dead_receiver_slow_nobody_else(self, hooks: "Bench", receiver: Receiver) -> None:
        with receiving() as dead:
            gone = f"{dead.url}/"
        hooks.start_worker()
        hooks.wait_for(lambda: "ready" in hooks.logs())
        with transaction(hooks.factory) as session:
            for _ in range(10):
                end(session, webhook_url=gone)
            slow = endpoint(session, f"{receiver.url}/slow").id
            for _ in range(10):
                end(session)
            session.execute(update(WebhookEndpoint).values(event_types=[]))
            live = endpoint(session, f"{receiver.url}/live").id
            for _ in range(10):
                end(session)
        hooks.wait_for(lambda: all_are(hooks.factory, "succeeded", endpoint_id=live))
        # While not one try of the slow one has ended, and it has as many as it may have at once.
        assert len(receiver.at("/live")) == 10
        assert len(receiver.at("/slow")) <= RECEIVER_CONCURRENCY
        assert all_are(hooks.factory, "pending", endpoint_id=slow)
        receiver.released.set()
        hooks.wait_for(lambda: all_are(hooks.factory, "succeeded", endpoint_id=slow))

    def test_killed_between_sending_and_noting_it_sends_again_under_the_same_id(
        self, hooks: "Bench", receiver: Receiver
    ) -> None:
        worker = hooks.start_worker()
        with transaction(hooks.factory) as session:
            job_id = end(session, webhook_url=f"{receiver.url}/slow")
        hooks.wait_for(lambda: len(receiver.at("/slow")) == 1)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        receiver.released.set()
        # As if the minute had passed after which a claim lapses.
        with transaction(hooks.factory) as session:
            past = func.clock_timestamp() - timedelta(seconds=1)
            session.execute(update(WebhookDelivery).values(claimed_until=past, next_attempt_at=past))
        hooks.start_worker()
        hooks.wait_for(lambda: all_are(hooks.factory, "succeeded", job_id=job_id))
        first, second = receiver.at("/slow")
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        [delivery] = deliveries(hooks.factory, job_id=job_id)
        assert [(one.status_code, one.ended_at is None) for one in delivery.log] == [
            (None, False), (200, False),
        ]  # fmt: skip
        assert "worker was lost" in (delivery.log[0].error or "")


class TestClaim:
    def test_never_more_at_once_to_one_receiver_than_the_bound(self, session_factory: SessionFactory) -> None:
        with transaction(session_factory) as session:
            for _ in range(12):
                end(session, webhook_url="http://127.0.0.1:9/a")

        def claim(_: int) -> bool:
            with transaction(session_factory) as session:
                return claim_delivery(session, patient=True, timeout_seconds=5) is not None

        with ThreadPoolExecutor(6) as pool:
            assert sum(pool.map(claim, range(12))) == RECEIVER_CONCURRENCY
        with session_factory() as session:
            assert not has_due_delivery(session)

    def test_a_failing_receiver_waits_for_the_patient_slots(self, session: Session) -> None:
        end(session, webhook_url="http://127.0.0.1:9/failing")
        claim = claim_delivery(session, patient=False, timeout_seconds=5)
        assert claim is not None
        note_answer(session, claim, Answer(status_code=500, error="500"), backoff_seconds=0)
        assert claim_delivery(session, patient=False, timeout_seconds=5) is None
        assert claim_delivery(session, patient=True, timeout_seconds=5) is not None

    def test_both_secrets_of_a_rotation_sign_for_a_day(self, session: Session) -> None:
        old, new = new_secret(), new_secret()
        row = endpoint(session, "http://127.0.0.1:9/", old)
        rotate(session, row, new, keep_old=True)
        end(session)
        end(session)
        claim = claim_delivery(session, patient=True, timeout_seconds=5)
        assert claim is not None
        assert claim.message.secrets == (new, old)
        row.previous_secret_until = func.clock_timestamp()
        session.flush()
        claim = claim_delivery(session, patient=True, timeout_seconds=5)
        assert claim is not None
        assert claim.message.secrets == (new,)


class TestAnswer:
    def noted(self, session: Session, answer: Answer, **changes: Any) -> WebhookDelivery:
        job_id = end(session, webhook_url="http://127.0.0.1:9/")
        if changes:
            session.execute(update(WebhookDelivery).where(WebhookDelivery.job_id == job_id).values(**changes))
        claim = claim_delivery(session, patient=True, timeout_seconds=5)
        assert claim is not None
        note_answer(session, claim, answer, backoff_seconds=5)
        session.expire_all()
        return session.scalars(select(WebhookDelivery).where(WebhookDelivery.job_id == job_id)).one()

    def test_a_failure_is_tried_again(self, session: Session) -> None:
        delivery = self.noted(session, Answer(status_code=503, error="x", response="busy"))
        assert (delivery.status, delivery.claimed_until) == (DeliveryStatus.PENDING, None)
        assert delivery.next_attempt_at is not None
        assert 2 < (delivery.next_attempt_at - delivery.created_at).total_seconds() < 9
        one = session.scalars(select(DeliveryTry).where(DeliveryTry.delivery_id == delivery.id)).one()
        assert (one.status_code, one.error, one.response) == (503, "x", "busy")

    def test_after_a_day_it_is_given_up(self, session: Session) -> None:
        delivery = self.noted(session, Answer(error="dead"), give_up_at=func.clock_timestamp())
        assert (delivery.status, delivery.next_attempt_at) == (DeliveryStatus.FAILED, None)
        assert delivery.finished_at is not None

    def test_gone_is_gone(self, session: Session) -> None:
        assert self.noted(session, Answer(status_code=410, error="gone")).status == DeliveryStatus.FAILED

    def test_a_try_that_was_taken_over_writes_nothing(self, session: Session) -> None:
        end(session, webhook_url="http://127.0.0.1:9/")
        late = claim_delivery(session, patient=True, timeout_seconds=5)
        session.execute(update(WebhookDelivery).values(claimed_until=None, next_attempt_at=func.now()))
        session.expire_all()
        current = claim_delivery(session, patient=True, timeout_seconds=5)
        assert late is not None
        assert current is not None
        note_answer(session, late, Answer(status_code=200), backoff_seconds=5)
        session.expire_all()
        delivery = session.get_one(WebhookDelivery, late.delivery_id)
        assert (delivery.status, delivery.tries) == (DeliveryStatus.PENDING, 2)

    def test_tries_spread_over_a_day(self) -> None:
        waits = [delay_before(number, 5) for number in range(2, 30)]
        assert 2.5 <= waits[0] <= 7.5
        assert all(5 * 2**n * 0.5 <= wait for n, wait in enumerate(waits[:11]))
        assert max(waits) <= BACKOFF_MAX_SECONDS * 1.5
        day = [wait for n, wait in enumerate(waits) if sum(waits[:n]) < 24 * 3600]
        assert 12 <= len(day) <= 24
