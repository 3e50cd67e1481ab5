"""Webhook endpoints, the project's own secret, and the rotation of both."""

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.ids import new_id
from db.models import WebhookEndpoint, WebhookSecret
from db.queries.paging import page_of

ROTATION = timedelta(days=1)


def add_endpoint(
    session: Session, *, project_id: str, name: str, url: str, event_types: list[Any], secret: str
) -> WebhookEndpoint:
    endpoint = WebhookEndpoint(
        id=new_id("endpoint"),
        project_id=project_id,
        name=name,
        url=url,
        event_types=event_types,
        secret=secret,
    )
    session.add(endpoint)
    session.flush()
    return endpoint


def get_endpoint(
    session: Session, endpoint_id: str, *, project_id: str, lock: bool = False
) -> WebhookEndpoint:
    """Find one endpoint of a project.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(WebhookEndpoint).where(
        WebhookEndpoint.id == endpoint_id, WebhookEndpoint.project_id == project_id
    )
    if lock:
        query = query.with_for_update(key_share=True)
    endpoint = session.scalars(query).one_or_none()
    if endpoint is None:
        raise NotFound(f"There is no webhook endpoint {endpoint_id!r}.", param="id")
    return endpoint


def list_endpoints(
    session: Session, *, project_id: str, after: str | None = None, limit: int = 20
) -> tuple[list[WebhookEndpoint], bool]:
    """One page of endpoints, newest first, and whether there are more."""
    query = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id)
    return page_of(session, query, WebhookEndpoint.id, after=after, limit=limit)


def project_secret(session: Session, project_id: str, *, fallback: str) -> WebhookSecret:
    """The project's secret, locked; `fallback` becomes it where there is none yet."""
    row = insert(WebhookSecret).values(project_id=project_id, secret=fallback)
    session.execute(row.on_conflict_do_nothing(index_elements=[WebhookSecret.project_id]))
    query = select(WebhookSecret).where(WebhookSecret.project_id == project_id)
    return session.scalars(query.with_for_update(key_share=True)).one()


def rotate(session: Session, row: WebhookEndpoint | WebhookSecret, secret: str, *, keep_old: bool) -> None:
    """Sign with `secret` from now on, and for a day with the old one too, if that is to be kept.

    Args:
        row: locked by the caller.
    """
    row.previous_secret = row.secret if keep_old else None
    row.previous_secret_until = func.clock_timestamp() + ROTATION if keep_old else None
    row.secret = secret
    row.updated_at = func.clock_timestamp()
    session.flush()


def valid_secrets(session: Session, row: WebhookEndpoint | WebhookSecret) -> tuple[str, ...]:
    """Every secret that a message is to be signed with at this moment, the newest first."""
    now = session.scalars(select(func.clock_timestamp())).one()
    until = row.previous_secret_until
    if row.previous_secret is None or until is None or until <= now:
        return (row.secret,)
    return row.secret, row.previous_secret
