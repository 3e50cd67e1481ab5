"""One transaction a request, committed here and nowhere else, before the answer is sent.

It begins, works and commits in one go on one thread of the pool. A dependency with `yield` would take
the connection on one thread and give it back on another: with more requests than threads all connections
are held by requests that wait for a thread, and nothing moves until the pool's timeout.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import structlog
from fastapi import Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.auditing import tell_change
from api.caller import CALLER, Caller, known
from api.destinations import Destinations
from api.group_commit import FellApart
from api.jobs.feeds import Feeds
from api.keyring import Keyring
from api.turns import Turns
from db.doorbell import Doorbell
from db.session import SessionFactory, autocommitting, transaction
from db.settings import Settings
from serving.backends.roster import Backends

Answer = TypeVar("Answer")
log = structlog.get_logger(__name__)


@dataclass
class Unit:
    """What one request works with: a session in a transaction, for one project."""

    session: Session
    settings: Settings
    asking: Caller | None = None  # none for what is open to all, which looks at nobody's rows
    shared: bool = False  # with other requests of a group
    _afterwards: list[Callable[[], object]] = field(default_factory=list)
    _undoing: list[Callable[[], object]] = field(default_factory=list)

    @property
    def caller(self) -> Caller:
        return known(self.asking)

    @property
    def project_id(self) -> str:
        """Whose rows the request may see and change."""
        return self.caller.project_id

    def after_commit(self, action: Callable[[], object]) -> None:
        """Do something that cannot be taken back, such as removing a file, once the rows say so."""
        self._afterwards.append(action)

    def takes_long(self) -> None:
        """Say so before what may take a while, such as asking a name server: nobody is to wait for that.

        Raises:
            FellApart: the transaction is shared; the request will be done again, alone.
        """
        if self.shared:
            raise FellApart

    def if_undone(self, action: Callable[[], object]) -> None:
        """Take back what was done outside of the database, should the rest of the request fail."""
        self._undoing.append(action)


@dataclass
class Services:
    """What the process holds for all requests. The doorbell rings by itself after commits."""

    settings: Settings
    engine: Engine
    session_factory: SessionFactory
    doorbell: Doorbell
    client: httpx.AsyncClient
    feeds: Feeds
    keyring: Keyring
    backends: Backends
    destinations: Destinations
    turns: Turns = field(default_factory=Turns)

    def in_transaction(self, work: Callable[[Unit], Answer]) -> Answer:
        """Do `work` in one transaction, then commit, then what it left for afterwards."""
        with transaction(self.session_factory) as session:
            unit = Unit(session, self.settings, CALLER.get())
            try:
                answer = work(unit)
            except BaseException:
                # Not for a commit that fails: it may have come about all the same.
                _do_all(unit._undoing)
                raise
        _do_all(unit._afterwards)
        return answer

    def reading(self, work: Callable[[Unit], Answer]) -> Answer:
        """Do `work`, which only reads, or writes what stands by itself, each statement committed at once."""
        with autocommitting(self.session_factory) as session:
            return work(Unit(session, self.settings, CALLER.get()))

    async def run_in_transaction(self, work: Callable[[Unit], Answer]) -> Answer:
        """`in_transaction` from an async endpoint, on a thread."""
        return await run_in_threadpool(self.in_transaction, work)

    async def run_reading(self, work: Callable[[Unit], Answer]) -> Answer:
        """`reading` from an async endpoint, on a thread."""
        return await run_in_threadpool(self.reading, work)


def _do_all(actions: list[Callable[[], object]]) -> None:
    for action in actions:
        try:
            action()
        except OSError:
            # The rows are the truth: a file left behind is the sweep's, or `lathe gc`'s.
            log.exception("file_left_behind")


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def transactional(endpoint: Callable[..., Answer]) -> Callable[..., Answer]:
    """Give a `def` endpoint its `Unit` as first argument, and commit when it returns.

    A POST that creates a row takes `api.idempotency.repeatable` in its place.
    """
    wants_request = "request" in inspect.signature(endpoint).parameters

    @functools.wraps(endpoint)
    def in_one_transaction(*, request: Request, **arguments: Any) -> Answer:
        if wants_request:
            arguments["request"] = request

        def work(unit: Unit) -> Answer:
            answer = endpoint(unit, **arguments)
            tell_change(unit, request, answer)
            return answer

        return services_of(request).in_transaction(work)

    in_one_transaction.__signature__ = signature_without_unit(endpoint)  # type: ignore[attr-defined]
    return in_one_transaction


def signature_without_unit(endpoint: Callable[..., Any], *more: inspect.Parameter) -> inspect.Signature:
    """What FastAPI is to give to what wraps an endpoint: the request, and not the unit, which is ours."""
    signature = inspect.signature(endpoint)
    _, *others = signature.parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [parameter.replace(kind=keyword) for parameter in others if parameter.name != "request"]
    parameters.append(inspect.Parameter("request", keyword, annotation=Request))
    return signature.replace(parameters=[*parameters, *more])
