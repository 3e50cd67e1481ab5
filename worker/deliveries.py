"""Sending webhooks, in the worker's own process: a claim, one request, and what came of it."""

import asyncio

import structlog

from db.doorbell import Doorbell
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import Queue
from webhooks.sending import Answer, send
from worker.delivery_claim import DeliveryClaim, claim_delivery, has_due_delivery, note_answer

log = structlog.get_logger(__name__)


def deliver_next(settings: Settings, factory: SessionFactory, doorbell: Doorbell, *, patient: bool) -> bool:
    """Try the delivery that is due first. Whether there was one.

    Args:
        patient: whether receivers that failed lately are tried too.
    """
    with transaction(factory) as session:
        claim = claim_delivery(session, patient=patient, timeout_seconds=settings.webhook_timeout_seconds)
    if claim is None:
        return False
    with transaction(factory) as session:
        more = has_due_delivery(session)
    if more:
        doorbell.ring(Queue.HOOKS)
    answer = _send(settings, claim)
    with transaction(factory) as session:
        delay = note_answer(session, claim, answer, backoff_seconds=settings.webhook_backoff_seconds)
    log.info(
        "delivery_tried",
        delivery_id=claim.delivery_id,
        number=claim.number,
        status=answer.status_code,
        error=answer.error,
        seconds=round(answer.seconds, 3),
    )
    # What is further off is the sweep's: a receiver that is away for long must not cost a timer each.
    if delay is not None and delay <= settings.sweep_seconds:
        doorbell.ring_later(Queue.HOOKS, delay)
    return True


def _send(settings: Settings, claim: DeliveryClaim) -> Answer:
    try:
        return asyncio.run(
            send(
                claim.message,
                allowed=settings.webhook_allowed_networks,
                timeout_seconds=settings.webhook_timeout_seconds,
            )
        )
    except Exception as error:
        # The edge of a try: whatever a stranger's server made of us, it is noted and the delivery goes on.
        log.exception("delivery_broken", delivery_id=claim.delivery_id)
        return Answer(error=f"Sending failed inside Lathe: {type(error).__name__}.")
