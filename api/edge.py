"""The outermost layer: a request id on every answer, our error shape on every error, one log line, and an
audit entry for what is refused.

Every error that an endpoint or a layer below raises ends here, Starlette's own plain-text answers
included, so there is one place that turns errors into HTTP.
"""

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.auditing import Ledger, entry_of, is_to_be_told
from api.caller import CALLER
from api.errors import answer_to, error_response
from db.errors import LatheError
from db.ids import new_id

# A caller's own id is taken if it cannot do harm in a log.
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,100}")
# A file that somebody uploaded must never run as a page of ours, nor a page of ours be shown within another,
# nor an answer be taken into one as an image or a script.
ALWAYS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"cross-origin-resource-policy": b"same-origin",
}
PLAIN_ERRORS = {
    400: ("The request cannot be read", "invalid_input"),
    416: ("The file has no such range of bytes", "range_not_satisfiable"),
}

RawHeader = tuple[bytes, bytes]

log = structlog.get_logger("api")


class Edge:
    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get("x-request-id", "")
        request_id = offered if REQUEST_ID.fullmatch(offered) else new_id("req")
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        answer = _Answer(send, request_id, state)
        began = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, answer.send)
            except ClientDisconnect:
                log.info("client_left", method=scope["method"], path=scope["path"])
                return
            except Exception as error:  # noqa: BLE001 - the process's edge
                await self._answer_error(error, answer, scope, receive)
            if is_to_be_told(scope, answer.status):
                entry = entry_of(scope, CALLER.get(), answer.status, code=answer.code)
                self._ledger.tell(entry)
            log.info(
                "request_served",
                method=scope["method"],
                path=scope["path"],
                status=answer.status,
                seconds=round(time.perf_counter() - began, 4),
            )

    async def _answer_error(
        self, error: Exception, answer: "_Answer", scope: Scope, receive: Receive
    ) -> None:
        response = answer_to(error, scope)
        answer.code = error.code if isinstance(error, LatheError) else None
        if response is None or answer.started:
            log.error("request_failed", exc_info=error)
        elif response.status_code >= 500:
            log.warning("request_refused", error=str(error))
        if answer.started:
            # Too late for a status; the server closes the connection, so nobody takes half for whole.
            raise error
        if response is None:
            response = error_response(
                500,
                f"Something went wrong inside Lathe. Its log tells more under the id {answer.request_id}.",
                code="internal_error",
            )
        await response(scope, receive, answer.send)


class _Answer:
    """Passes an answer on, with the headers that each one has, and those that the gate asks for."""

    def __init__(self, send: Send, request_id: str, state: Mapping[str, Any]) -> None:
        self._send = send
        self._state = state
        self.request_id = request_id
        self.started = False
        self.status = 0
        self.code: str | None = None  # of an error of ours
        self._replaced = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            message["headers"] = self._with_ours(message.get("headers", ()))
            if self.status >= 400:
                headers = Headers(raw=message["headers"])
                if headers.get("content-type", "").startswith("text/plain"):
                    await self._replace(headers)
                    return
        elif self._replaced:
            return
        await self._send(message)

    def _with_ours(self, raw: Iterable[RawHeader]) -> list[RawHeader]:
        ours = {b"x-request-id": self.request_id.encode(), **ALWAYS}
        for name, value in self._state.get("headers", {}).items():
            ours[name.encode("latin-1")] = value.encode("latin-1")
        return [*(row for row in raw if row[0] not in ours), *ours.items()]

    async def _replace(self, headers: Headers) -> None:
        """Say a plain-text error of Starlette's in our shape."""
        self._replaced = True
        message, code = PLAIN_ERRORS.get(self.status, ("The request failed", "error"))
        kept = {name: value for name, value in headers.items() if not name.startswith("content-")}
        if "content-range" in headers:
            kept["content-range"] = headers["content-range"]
        response = error_response(self.status, f"{message}.", code=code, headers=kept)
        await self._send(
            {"type": "http.response.start", "status": self.status, "headers": response.raw_headers}
        )
        await self._send({"type": "http.response.body", "body": response.body})
