"""Deliveries: queued with the change that they tell of, found, listed, and sent again by hand."""

import re
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from db.errors import Conflict, NotFound
from db.ids import new_id
from db.models import DeliveryTry, Job, WebhookDelivery, WebhookEndpoint
from db.queries.paging import page_of
from db.session import note_work
from db.states import JobKind, JobStatus, Queue
from db.webhook_events import DeliveryStatus, EventType, event_body, events_of, job_event

RETRIED_FOR = timedelta(days=1)


def queue_deliveries(session: Session, job: Job) -> None:
    """Queue a delivery to each receiver that wants to know how `job`, which has just ended, ended."""
    status = JobStatus(job.status)
    for event_type in events_of(JobKind(job.kind), status, expired=bool((job.result or {}).get("expired"))):
        receivers: list[dict[str, Any]] = [
            {"endpoint_id": endpoint_id, "receiver": endpoint_id}
            for endpoint_id in session.scalars(
                select(WebhookEndpoint.id).where(
                    WebhookEndpoint.project_id == job.project_id,
                    WebhookEndpoint.event_types.contains([str(event_type)]),
                )
            )
        ]
        if job.webhook_url is not None and event_type == job_event(status):
            receivers.append({"url": job.webhook_url, "receiver": _origin(job.webhook_url)})
        if receivers:
            _queue(session, job, event_type, receivers)


def _queue(session: Session, job: Job, event_type: EventType, receivers: list[dict[str, Any]]) -> None:
    if job.finished_at is None:
        raise Conflict("Only the end of a job is told.", code="job_not_ended")
    event_id = new_id("evt")
    body = event_body(event_id, event_type, created_at=int(job.finished_at.timestamp()), subject_id=job.id)
    for receiver in receivers:
        session.add(
            WebhookDelivery(
                id=new_id("delivery"),
                project_id=job.project_id,
                job_id=job.id,
                event_id=event_id,
                event_type=str(event_type),
                body=body,
                next_attempt_at=func.clock_timestamp(),
                give_up_at=func.clock_timestamp() + RETRIED_FOR,
                **receiver,
            )
        )
    note_work(session, Queue.HOOKS)
    session.flush()


def _origin(url: str) -> str:
    """Scheme, host and port: all jobs that tell one receiver share its bound."""
    # Not parsed: the end of a job must not fail because of an address.
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split(r'[/?#]', rest, maxsplit=1)[0]}".lower()


def get_delivery(
    session: Session, delivery_id: str, *, project_id: str, lock: bool = False
) -> WebhookDelivery:
    """Find one delivery of a project.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(WebhookDelivery).where(
        WebhookDelivery.id == delivery_id, WebhookDelivery.project_id == project_id
    )
    query = query.options(selectinload(WebhookDelivery.log))
    if lock:
        query = query.with_for_update(key_share=True)
    delivery = session.scalars(query).one_or_none()
    if delivery is None:
        raise NotFound(f"There is no webhook delivery {delivery_id!r}.", param="id")
    return delivery


def list_deliveries(
    session: Session,
    *,
    endpoint_id: str | None = None,
    job_id: str | None = None,
    status: DeliveryStatus | None = None,
    after: str | None = None,
    limit: int = 20,
) -> tuple[list[WebhookDelivery], bool]:
    """One page of the deliveries of an endpoint or of a job, newest first, and whether there are more."""
    query = select(WebhookDelivery).options(selectinload(WebhookDelivery.log))
    if endpoint_id is not None:
        query = query.where(WebhookDelivery.endpoint_id == endpoint_id)
    if job_id is not None:
        query = query.where(WebhookDelivery.job_id == job_id)
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    return page_of(session, query, WebhookDelivery.id, after=after, limit=limit)


def redeliver(session: Session, delivery: WebhookDelivery) -> None:
    """Send a locked delivery again: the same message with the same id, and with new patience.

    Raises:
        Conflict: it is being sent at this moment.
    """
    now = session.scalars(select(func.clock_timestamp())).one()
    if delivery.claimed_until is not None and delivery.claimed_until > now:
        raise Conflict(
            "The delivery is being sent now: wait for what comes of it.", code="delivery_under_way"
        )
    delivery.status = DeliveryStatus.PENDING
    delivery.next_attempt_at, delivery.give_up_at = now, now + RETRIED_FOR
    delivery.finished_at = None
    note_work(session, Queue.HOOKS)
    session.flush()


def log_finished(
    session: Session,
    endpoint: WebhookEndpoint,
    *,
    event_id: str,
    event_type: EventType,
    body: str,
    seconds: float,
    status_code: int | None,
    error: str | None,
    response: str | None,
) -> WebhookDelivery:
    """Write down a message that was sent to an endpoint once, and is not to be sent again by itself."""
    delivery = WebhookDelivery(
        id=new_id("delivery"),
        project_id=endpoint.project_id,
        endpoint_id=endpoint.id,
        receiver=endpoint.id,
        event_id=event_id,
        event_type=str(event_type),
        body=body,
        status=str(DeliveryStatus.FAILED if error else DeliveryStatus.SUCCEEDED),
        tries=1,
        give_up_at=func.clock_timestamp(),
        finished_at=func.clock_timestamp(),
    )
    session.add(delivery)
    session.flush()
    session.add(
        DeliveryTry(
            delivery_id=delivery.id,
            number=1,
            started_at=func.clock_timestamp() - timedelta(seconds=seconds),
            ended_at=func.clock_timestamp(),
            status_code=status_code,
            error=error,
            response=response,
        )
    )
    session.flush()
    return delivery
