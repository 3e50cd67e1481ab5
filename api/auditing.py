"""What becomes the audit log: every request that changes something, and every one that is refused.

A change is told by the transaction that makes it: there are both or neither. What is refused changes nothing,
and is told within a second after it was answered; so is a change that is made without a transaction of the
request's own.
"""

import asyncio
import time
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import Match
from starlette.types import Scope

from api.caller import Caller
from api.scopes import changes_something
from db.models import AuditEntry
from db.queries.keys import USE_NOTED_SECONDS, note_use
from db.session import SessionFactory, insert_rows, transaction

if TYPE_CHECKING:
    from api.unit_of_work import Unit

WRITTEN_EVERY_SECONDS = 1.0
MOST_WAITING = 1000
LONGEST = 300  # characters of a path
REFUSED = frozenset({401, 403, 429})

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Entry:
    """A row of the log; see `AuditEntry`."""

    project_id: str | None
    key_id: str | None
    action: str
    method: str
    path: str
    target: str | None
    status: int
    code: str | None
    address: str | None
    request_id: str
    times: int = 1

    @property
    def kind(self) -> tuple[object, ...]:
        """What entries have in common that are told as one."""
        return self.project_id, self.key_id, self.action, self.status, self.code, self.address


def entry_of(
    scope: Scope, caller: Caller | None, status: int, *, target: str | None = None, code: str | None = None
) -> Entry:
    """Tell of a request, also of one that was refused before its route was known."""
    action, named = _routed(scope)
    if target is None and named:
        target = str(list(named.values())[-1])
    return Entry(
        project_id=caller.project_id if caller is not None else None,
        key_id=caller.key_id if caller is not None else None,
        action=action,
        method=scope["method"],
        path=_storable(scope["path"]),
        target=_storable(target) if target is not None else None,
        status=status,
        code=code,
        address=scope["client"][0] if scope.get("client") else None,
        request_id=_state(scope).get("request_id", ""),
    )


def tell_change(unit: "Unit", request: Request, answer: Any) -> None:
    """Add to the unit's transaction that the request has changed something, if it is one that does."""
    scope = request.scope
    if not changes_something(scope["method"], scope["path"]):
        return
    status = scope["route"].status_code or 200
    entry = entry_of(scope, unit.caller, status, target=getattr(answer, "id", None))
    insert_rows(unit.session, AuditEntry, [vars(entry)])
    unit.after_commit(lambda: told(request))


def told(request: Request) -> None:
    """Say that there is no more to tell of a request, unless it fails."""
    _state(request.scope)["told"] = True


def is_to_be_told(scope: Scope, status: int) -> bool:
    """Whether an answered request belongs into the log, and is not there yet."""
    if status in REFUSED:
        return True
    if not status or not changes_something(scope["method"], scope["path"]):
        return False
    return status >= 400 or "told" not in _state(scope)


class Ledger:
    """What one process has yet to write: entries, and which keys were used. For one event loop."""

    def __init__(self, factory: SessionFactory) -> None:
        self._factory = factory
        self._entries: dict[tuple[object, ...], Entry] = {}
        self._used: set[str] = set()
        self._noted: dict[str, float] = {}  # when a key's use was last noted
        self._left_out = 0
        self._writing: asyncio.Task[None] | None = None

    def tell(self, entry: Entry) -> None:
        """Add an entry. Whoever is refused all the time costs one row a second."""
        known = self._entries.get(entry.kind)
        if known is None and len(self._entries) >= MOST_WAITING:
            self._left_out += 1
            return
        self._entries[entry.kind] = replace(known, times=known.times + entry.times) if known else entry
        self._write_soon()

    def used(self, key_id: str) -> None:
        """A key was used; once a minute that is written."""
        now = time.monotonic()
        if now - self._noted.get(key_id, -USE_NOTED_SECONDS) >= USE_NOTED_SECONDS:
            self._noted[key_id] = now
            self._used.add(key_id)
            self._write_soon()

    async def close(self) -> None:
        """Write what is left, once."""
        await self._stop()
        await self._write()
        await self._stop()

    async def _stop(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    def _write_soon(self) -> None:
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._keep_writing())

    async def _keep_writing(self) -> None:
        while self._entries or self._used:
            await asyncio.sleep(WRITTEN_EVERY_SECONDS)
            await self._write()

    async def _write(self) -> None:
        entries, self._entries = self._entries, {}
        used, self._used = self._used, set()
        left_out, self._left_out = self._left_out, 0
        if left_out:
            log.warning("audit_entries_left_out", number=left_out)
        try:
            await run_in_threadpool(self._insert, list(entries.values()), used)
        except SQLAlchemyError as error:
            log.warning("audit_entries_wait", number=len(entries), error=str(error))
            self._used |= used
            for entry in entries.values():
                self.tell(entry)

    def _insert(self, entries: list[Entry], used: set[str]) -> None:
        if not entries and not used:
            return
        with transaction(self._factory) as session:
            if entries:
                insert_rows(session, AuditEntry, [vars(entry) for entry in entries])
            if used:
                note_use(session, used)


def _routed(scope: Scope) -> tuple[str, dict[str, Any]]:
    """The name of the operation that a request is for, and what its path names."""
    if "route" in scope:
        return scope["route"].name, scope.get("path_params", {})
    for route in scope["app"].state.operations:
        match, found = route.matches(scope)
        if match is Match.FULL:
            return route.name, found.get("path_params", {})
    return "", {}


def _state(scope: Scope) -> MutableMapping[str, Any]:
    state: MutableMapping[str, Any] = scope.setdefault("state", {})
    return state


def _storable(text: str) -> str:
    return text.replace("\0", "�")[:LONGEST]
