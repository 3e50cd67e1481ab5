"""Who may ask, and with what kind of body. Every request that `api.browsers` lets through passes here before
any route sees it; a body must be declared as what the route takes, which no form of a foreign page can do.
"""

import contextlib
import json
import re
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import documentation
from api.auditing import Ledger
from api.caller import CALLER, OPERATORS_KEY, Caller
from api.chat_page import routes as chat_page
from api.errors import Forbidden, TooLarge, WrongContentType
from api.keyring import Keyring
from api.quotas import RequestCounter
from api.scopes import PASSED_ON, scopes_for
from api.validation import refuse_unstorable
from db.errors import InvalidInput
from db.settings import LOOPBACK, Settings

JSON = "application/json"
MULTIPART = "multipart/form-data"
TAKES_MULTIPART = re.compile(r"POST (/v1/files|/v1/uploads/[^/]+/parts)")
# What shows nothing that is the user's: for health checks, and pages before they ask for anything.
OPEN_PATHS = documentation.PATHS | chat_page.PATHS | {"/healthz", "/readyz", "/openapi.json"}
MAX_FIELDS = 2000  # of one JSON object; a job of every kind has fewer than fifty
# A multipart body is a little longer than the file in it.
MULTIPART_OVERHEAD_BYTES = 64 * 1024


def is_loopback(host: str) -> bool:
    return host in LOOPBACK


class Gate:
    def __init__(
        self, app: ASGIApp, settings: Settings, keyring: Keyring, ledger: Ledger, counter: RequestCounter
    ) -> None:
        self._app = app
        self._settings = settings
        self._keyring = keyring
        self._ledger = ledger
        self._counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["path"] not in OPEN_PATHS:
            await self._let_in(scope, headers)
        if "\0" in scope["path"] or b"%00" in scope["query_string"]:
            raise InvalidInput("An address may not hold the character NUL.")
        await self._app(scope, await self._checked_body(scope, headers, receive), send)

    async def _let_in(self, scope: Scope, headers: Headers) -> None:
        """Find out who asks, and whether they may."""
        caller = await self._keyring.caller(headers.get("authorization", ""))
        CALLER.set(caller)
        if caller.key_id is not None and caller.key_id != OPERATORS_KEY:
            self._ledger.used(caller.key_id)
        window = await self._counter.count(caller)
        if window is not None:
            scope["state"].setdefault("headers", {}).update(window.headers)
            window.check(caller.project_id)
        _check_scope(caller, scope["method"], scope["path"])

    async def _checked_body(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        multipart = TAKES_MULTIPART.fullmatch(f"{scope['method']} {scope['path']}") is not None
        length = _length(headers)
        self._check_length(length, multipart)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        declared = headers.get("content-type", "").partition(";")[0].strip().lower()
        has_body = length != 0 or "transfer-encoding" in headers
        expected = MULTIPART if multipart else JSON
        if declared != expected and (declared or has_body):
            given = f"not {declared}" if declared else "and the request declares none"
            raise WrongContentType(
                f"{scope['path']} takes content-type {expected}, {given}.", param="content-type"
            )
        if multipart or not has_body:
            return receive  # an upload is counted as it goes to disk
        body = await self._read(receive)
        if scope["path"] not in PASSED_ON:
            _check_fields(body)
        return _replay(body, receive)

    def _check_length(self, length: int, multipart: bool) -> None:
        """Refuse what is announced as too large before any of it comes."""
        settings = self._settings
        if multipart and length > settings.max_file_bytes + MULTIPART_OVERHEAD_BYTES:
            raise TooLarge(
                f"A file may have at most {settings.max_file_bytes} bytes here (LATHE_MAX_FILE_BYTES); "
                f"this one has about {length}.",
                param="file",
            )
        if not multipart and length > settings.max_body_bytes:
            raise self._body_too_large()

    async def _read(self, receive: Receive) -> bytes:
        """The whole body, never more of it in memory than the limit."""
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self._settings.max_body_bytes:
                raise self._body_too_large()
            if not message.get("more_body", False):
                return bytes(body)

    def _body_too_large(self) -> TooLarge:
        limit = self._settings.max_body_bytes
        return TooLarge(f"A body may have at most {limit} bytes here (LATHE_MAX_BODY_BYTES).")


def _check_scope(caller: Caller, method: str, path: str) -> None:
    """See that a key has the scope that the request needs.

    Raises:
        Forbidden: it has not; the message names the scope.
    """
    needed = scopes_for(method, path)
    if not caller.may(needed):
        names = " or ".join(f"`{scope}`" for scope in sorted(needed))
        has = ", ".join(sorted(caller.scopes)) or "none"
        raise Forbidden(
            f"{method} {path} needs an API key with the scope {names}; this one has: {has}.",
            code="scope_missing",
        )


def _check_fields(body: bytes) -> None:
    """Refuse an object of so many fields that to say of each what is wrong would hold up everybody, and the
    character NUL, which Postgres takes in no text.

    Raises:
        InvalidInput: there is one.
    """

    def check(fields: list[tuple[str, Any]]) -> None:
        if len(fields) > MAX_FIELDS:
            raise InvalidInput(
                f"An object of the body has {len(fields)} fields; more than {MAX_FIELDS} are never taken.",
                code="too_many_fields",
            )

    if body.count(b":") > MAX_FIELDS:
        # What is no JSON is told by whoever reads it.
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(body, object_pairs_hook=check)
    if rb"\u0000" in body:
        with contextlib.suppress(ValueError, RecursionError):
            refuse_unstorable(json.loads(body))


def _length(headers: Headers) -> int:
    value = headers.get("content-length", "0")
    return int(value) if value.isdecimal() else 0


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give a body that has been read to who asks next, and afterwards what the server has."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
