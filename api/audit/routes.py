"""HTTP of the audit log."""

from typing import Annotated

from fastapi import Query

from api.audit.schemas import AuditEntryOut
from api.keys.service import administered
from api.pages import After, Limit, Page, page, unix_seconds
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from db.errors import InvalidInput
from db.models import AuditEntry
from db.queries.audit import list_entries

router = make_router("audit")

Word = Annotated[str | None, Query(max_length=200)]


@router.get("/v1/audit", response_model=Page[AuditEntryOut], summary="Read the audit log, newest first")
@transactional
def list_audit_entries(
    unit: Unit,
    *,
    project: Word = None,
    key: Word = None,
    action: Word = None,
    target: Word = None,
    denied: Annotated[bool | None, Query(description="Only what was refused, or only what was not.")] = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[AuditEntryOut]:
    """Every request that changed something, and every one that was refused, of your project; for who
    administers the server, of all."""
    rows, more = list_entries(
        unit.session,
        project_id=administered(unit.caller, project),
        key_id=key,
        action=action,
        target=target,
        denied=denied,
        before=_number(after),
        limit=limit,
    )
    return page([_entry_out(row) for row in rows], more)


def _number(after: str | None) -> int | None:
    digits = (after or "").removeprefix("audit-")
    if after is None:
        return None
    if not digits.isdecimal() or len(digits) > 18:
        raise InvalidInput(f"after: {after!r} is not an entry's id.", param="after")
    return int(digits)


def _entry_out(entry: AuditEntry) -> AuditEntryOut:
    return AuditEntryOut(
        id=f"audit-{entry.id}",
        created_at=unix_seconds(entry.created_at),
        project=entry.project_id,
        key=entry.key_id,
        action=entry.action,
        method=entry.method,
        path=entry.path,
        target=entry.target,
        status=entry.status,
        code=entry.code,
        address=entry.address,
        request_id=entry.request_id,
        times=entry.times,
    )
