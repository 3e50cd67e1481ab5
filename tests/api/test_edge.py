"""The outermost layer, around applications that fail."""

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from api.auditing import Ledger
from api.edge import Edge
from db.session import SessionFactory
from tests.api.conftest import error_of, serving
from tests.api.model_server import answer_lifespan


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await answer_lifespan(receive, send)
        return
    if scope["path"] == "/midway":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("a secret of ours")


def test_what_nobody_foresaw_is_a_500_that_tells_only_its_id(session_factory: SessionFactory) -> None:
    with serving(Edge(fails, Ledger(session_factory))) as url:
        answer = httpx.get(f"{url}/", trust_env=False)
    assert answer.status_code == 500
    error = error_of(answer)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text


def test_half_an_answer_is_never_taken_for_a_whole_one(session_factory: SessionFactory) -> None:
    with serving(Edge(fails, Ledger(session_factory))) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{url}/midway", trust_env=False)
