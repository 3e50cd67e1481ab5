"""Rows as the bodies that show them. A secret is in none of them unless it is given."""

from typing import Any

from api.pages import unix_seconds, unix_seconds_or_none
from api.webhooks.schemas import (
    DeliveryOut,
    EndpointOut,
    EndpointWithSecret,
    SecretOut,
    SecretWithValue,
    TryOut,
)
from db.models import DeliveryTry, WebhookDelivery, WebhookEndpoint, WebhookSecret
from db.webhook_events import DeliveryStatus
from webhooks.signing import hint_of


def endpoint_out(row: WebhookEndpoint) -> EndpointOut:
    return EndpointOut(**_endpoint_fields(row))


def endpoint_with_secret(row: WebhookEndpoint) -> EndpointWithSecret:
    return EndpointWithSecret(**_endpoint_fields(row), signing_secret=row.secret)


def _endpoint_fields(row: WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": unix_seconds(row.created_at),
        "updated_at": unix_seconds(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": hint_of(row.secret),
    }


def secret_out(row: WebhookSecret) -> SecretOut:
    return SecretOut(**_secret_fields(row))


def secret_with_value(row: WebhookSecret) -> SecretWithValue:
    return SecretWithValue(**_secret_fields(row), signing_secret=row.secret)


def _secret_fields(row: WebhookSecret) -> dict[str, Any]:
    return {
        "created_at": unix_seconds(row.created_at),
        "updated_at": unix_seconds(row.updated_at),
        "read_at": unix_seconds_or_none(row.read_at),
        "signing_secret_hint": hint_of(row.secret),
    }


def delivery_out(row: WebhookDelivery) -> DeliveryOut:
    return DeliveryOut(
        id=row.id,
        event_id=row.event_id,
        event_type=row.event_type,
        job_id=row.job_id,
        endpoint_id=row.endpoint_id,
        url=row.url,
        status=DeliveryStatus(row.status),
        created_at=unix_seconds(row.created_at),
        next_attempt_at=unix_seconds_or_none(row.next_attempt_at),
        finished_at=unix_seconds_or_none(row.finished_at),
        tries=[_try_out(one) for one in row.log],
    )


def _try_out(row: DeliveryTry) -> TryOut:
    return TryOut(
        number=row.number,
        started_at=unix_seconds(row.started_at),
        ended_at=unix_seconds_or_none(row.ended_at),
        status_code=row.status_code,
        error=row.error,
        response=row.response,
    )
