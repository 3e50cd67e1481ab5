"""Asking a server, against a small local one that misbehaves on purpose."""

import json
from collections.abc import Iterator

import pytest

from db.errors import InvalidInput, NotFound, Unavailable
from serving.openai_compatible import LlamaServer
from tests.http_server import Handler, serving_by


class Misbehaving(Handler):
    """Each path is one behaviour. What was asked is kept in `seen`."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[dict[str, str], bytes]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = self.body()
        self.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
        status = {"/busy": 503, "/forbidden": 401, "/missing": 404, "/wrong": 400}.get(self.path)
        if status is not None:
            self.reply_json(status, {"error": {"message": f"told {status}"}})
        else:
            self.reply_json(200, {"echo": json.loads(body)})

    def do_GET(self) -> None:
        """As a foreign server does, of whose answers the path names one."""
        content = {"/page/models": b"<html>", "/rows/models": b'{"data": [{"status": {}}]}'}.get(
            self.path, b'{"models": 1}'
        )
        self.reply(200, content)


@pytest.fixture
def url() -> Iterator[str]:
    Misbehaving.seen.clear()
    with serving_by(Misbehaving) as url:
        yield url


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
