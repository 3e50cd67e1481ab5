"""Asking a server, against a small local one that misbehaves on purpose."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from db.errors import InvalidInput, NotFound, Unavailable
from serving.openai_compatible import LlamaServer


class Handler(BaseHTTPRequestHandler):
    """Each path is one behaviour. What was asked is kept in `seen`."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[dict[str, str], bytes]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
        status = {"/busy": 503, "/forbidden": 401, "/missing": 404, "/wrong": 400}.get(self.path)
        if status is not None:
            self._json(status, {"error": {"message": f"told {status}"}})
        else:
            self._json(200, {"echo": json.loads(body)})

    def do_GET(self) -> None:
        """As a foreign server does, of whose answers the path names one."""
        content = {"/page/models": b"<html>", "/rows/models": b'{"data": [{"status": {}}]}'}.get(
            self.path, b'{"models": 1}'
        )
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _json(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class TestLlamaServerErrors:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("/busy", Unavailable),
            ("/forbidden", Unavailable),
            ("/missing", NotFound),
            ("/wrong", InvalidInput),
        ],
    )
    def test_each_status_has_its_name(self, url: str, path: str, expected: type[Exception]) -> None:
        with LlamaServer(url) as server, pytest.raises(expected, match="told"):
            server._post(path, {})

    def test_router_is_told_the_model(self, url: str) -> None:
        with LlamaServer(url, model="faq") as server:
            assert server._post("/echo", {"n": 1}) == {"echo": {"n": 1, "model": "faq"}}

    @pytest.mark.parametrize("behaviour", ["/page", "/rows", "/other"])
    def test_what_no_llama_server_answers_has_a_name_too(self, url: str, behaviour: str) -> None:
        with LlamaServer(url + behaviour) as server:
            with pytest.raises(Unavailable, match="as a llama-server does"):
                server.loaded_models()
            with pytest.raises(Unavailable, match="as a llama-server does"):
                server.is_answering("faq")
