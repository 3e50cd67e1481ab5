"""The audit log: read, newest first."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import AuditEntry
from db.queries.paging import page_of


def list_entries(
    session: Session,
    *,
    project_id: str | None,
    key_id: str | None = None,
    action: str | None = None,
    target: str | None = None,
    denied: bool | None = None,
    before: int | None = None,
    limit: int = 20,
) -> tuple[list[AuditEntry], bool]:
    """One page of entries, and whether there are more.

    Args:
        project_id: None for all, and for those of which nobody knows who asked.
        denied: only requests that were refused, or only those that were not.
        before: the number of an entry; older ones follow.
    """
    query = select(AuditEntry)
    for column, value in (
        (AuditEntry.project_id, project_id),
        (AuditEntry.key_id, key_id),
        (AuditEntry.action, action),
        (AuditEntry.target, target),
    ):
        if value is not None:
            query = query.where(column == value)
    if denied is not None:
        query = query.where(AuditEntry.status >= 400 if denied else AuditEntry.status < 400)
    return page_of(session, query, AuditEntry.id, after=before, limit=limit)
