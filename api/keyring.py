"""Keys as the gate knows them: looked up by their hash, and remembered for a few seconds.

So most requests cost no query. What is changed about a key or its project holds in every process of the API
as soon as Postgres has told it, within `KEPT_SECONDS` in any case, and at once in the one that changed it.
"""

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.caller import OPERATORS_KEY, Caller, limits_of
from api.errors import Forbidden, Unauthenticated
from api.turns import Turns
from db.errors import LatheError
from db.keys import Scope, digest_of
from db.models import DEFAULT_PROJECT
from db.queries.keys import KeyHolder, find_holder, has_keys
from db.queries.projects import get_project
from db.session import SessionFactory, transaction
from db.settings import Settings

KEPT_SECONDS = 5.0
MAKE_ONE = "`lathe keys create` on the server's machine makes one."


@dataclass(frozen=True)
class Standing:
    """What a key, or the lack of one, comes to: a caller, or what is said in place of an answer.

    Args:
        seconds: for how long it may be remembered.
    """

    caller: Caller | None = None
    refusal: Callable[[], LatheError] | None = None
    seconds: float = KEPT_SECONDS


class Keyring:
    """The keys of one process.

    Args:
        clock: in seconds, from any beginning.
    """

    def __init__(
        self, settings: Settings, factory: SessionFactory, clock: Callable[[], float] = time.monotonic
    ) -> None:
        key = settings.api_key.get_secret_value()
        self._operators = digest_of(key.encode()) if key else None
        self._needed = self._operators is not None  # once it is, it stays so
        self._factory, self._clock = factory, clock
        self._kept: dict[bytes, tuple[float, Standing]] = {}
        self._turns = Turns()

    async def caller(self, authorization: str) -> Caller:
        """Who sends this header.

        Raises:
            Unauthenticated: a key is needed, and there is none, or one that is wrong, expired or revoked.
            Forbidden: the key's project has been archived.
        """
        given = _digest_of_bearer(authorization)
        if self._operators is not None and hmac.compare_digest(given, self._operators):
            return await self._standing(b"operator", lambda session: _of_default(session, OPERATORS_KEY))
        if not self._needed:
            try:
                return await self._standing(b"nobody", _without_key)
            except Unauthenticated:
                self._needed = True
        if not given:
            raise _key_missing()
        return await self._standing(given, lambda session: _with_key(session, given))

    def forget(self, _: object = None) -> None:
        """Look everything up anew."""
        self._kept = {}

    async def _standing(self, name: bytes, look: Callable[[Session], Standing]) -> Caller:
        standing = self._remembered(name)
        if standing is None:
            async with self._turns.of(name):  # one looks, for all who come meanwhile
                standing = self._remembered(name)
                if standing is None:
                    # What `forget` puts in its place is not given what was looked up before.
                    kept, asked_at = self._kept, self._clock()
                    standing = await run_in_threadpool(self._look, look)
                    if standing.seconds > 0:
                        kept[name] = (asked_at + standing.seconds, standing)
        if standing.refusal is not None:
            raise standing.refusal()
        return standing.caller or Caller()

    def _remembered(self, name: bytes) -> Standing | None:
        until, standing = self._kept.get(name, (0.0, None))
        return standing if self._clock() < until else None

    def _look(self, look: Callable[[Session], Standing]) -> Standing:
        with transaction(self._factory) as session:
            return look(session)


def _digest_of_bearer(authorization: str) -> bytes:
    """The hash of what was sent as a key; empty if nothing was."""
    scheme, _, secret = authorization.partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        return b""
    # Headers are read as latin-1: this gives back the bytes that were sent.
    return digest_of(secret.encode("latin-1"))


def _of_default(session: Session, key_id: str | None) -> Standing:
    project = get_project(session, DEFAULT_PROJECT)
    return Standing(Caller(key_id=key_id, limits=limits_of(project)))


def _without_key(session: Session) -> Standing:
    """Until the first key is made, whoever reaches the server is its operator."""
    return Standing(refusal=_key_missing) if has_keys(session) else _of_default(session, None)


def _with_key(session: Session, digest: bytes) -> Standing:
    holder = find_holder(session, digest)
    if holder is None:
        return Standing(refusal=_key_unknown, seconds=0)  # as many as somebody cares to make up
    refusal = _refusal_of(holder)
    if refusal is not None:
        return Standing(refusal=refusal)
    key = holder.key
    scopes = frozenset(Scope(scope) for scope in key.scopes)
    return Standing(
        Caller(key.project_id, key.id, scopes, limits_of(holder.project)),
        seconds=KEPT_SECONDS if holder.seconds_left is None else min(KEPT_SECONDS, holder.seconds_left),
    )


def _refusal_of(holder: KeyHolder) -> Callable[[], LatheError] | None:
    key = holder.key
    shown = f"The API key {key.prefix}…"
    if key.revoked_at is not None:
        message = f"{shown} was revoked at {_moment(key.revoked_at)}. {MAKE_ONE}"
        return lambda: Unauthenticated(message, code="api_key_revoked")
    if holder.seconds_left is not None and holder.seconds_left <= 0 and key.expires_at is not None:
        message = f"{shown} expired at {_moment(key.expires_at)}. {MAKE_ONE}"
        return lambda: Unauthenticated(message, code="api_key_expired")
    if holder.project.archived_at is not None:
        message = f"The project {key.project_id!r} is archived: `lathe projects restore` opens it again."
        return lambda: Forbidden(message, code="project_archived")
    return None


def _key_missing() -> LatheError:
    return Unauthenticated(f"This server needs an API key, as `Authorization: Bearer …`. {MAKE_ONE}")


def _key_unknown() -> LatheError:
    return Unauthenticated(
        f"The API key is wrong: neither a key of this server nor its LATHE_API_KEY. {MAKE_ONE}"
    )


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
