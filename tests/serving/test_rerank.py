"""What rerank servers answer, and what becomes of it, against a small server that answers as it is told."""

import asyncio
import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from db.errors import Unavailable
from serving.rerank import rerank

Handler = Callable[[httpx.Request], httpx.Response]
PASSAGES = ["a", "b", "c"]


def ask(handler: Any, *, seconds: float = 5) -> list[float]:
    async def run() -> list[float]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            return await rerank(
                client, "http://rerank", "q", PASSAGES, model="m", api_key="secret", seconds=seconds
            )

    return asyncio.run(run())


def answering(*rows: object, status: int = 200) -> Handler:
    return lambda request: httpx.Response(status, json={"results": list(rows)})


def row(index: int, score: float) -> dict[str, object]:
    return {"index": index, "relevance_score": score}


class TestRerank:
    def test_asks_as_servers_want_it(self) -> None:
        asked: list[httpx.Request] = []

        def handler(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return answering(row(2, 0.9), row(0, 0.5), row(1, 0.1))(request)

        assert ask(handler) == [0.5, 0.1, 0.9]
        [request] = asked
        assert (request.url.path, request.headers["authorization"]) == ("/v1/rerank", "Bearer secret")
        assert json.loads(request.content) == {
            "model": "m", "query": "q", "documents": PASSAGES, "top_n": 3,
        }  # fmt: skip

    def test_makes_logits_probabilities(self) -> None:
        found = ask(answering(row(0, -2000.0), row(1, 0.0), row(2, 7.7)))
        assert found == pytest.approx([0.0, 0.5, 1 / (1 + math.exp(-7.7))])

    @pytest.mark.parametrize(
        "handler",
        [
            answering(row(0, 0.5), row(1, 0.5)),
            answering(row(0, 0.5), row(1, 0.5), row(3, 0.5)),
            answering(row(0, 0.5), row(1, 0.5), {"index": 2}),
            answering(row(0, 0.5), row(1, 0.5), {"index": 2, "relevance_score": "NaN"}),
            lambda request: httpx.Response(200, json={"data": []}),
            lambda request: httpx.Response(200, json="no"),
            lambda request: httpx.Response(200, text="<html>"),
            lambda request: httpx.Response(500, json={"error": {"message": "too large"}}),
            lambda request: httpx.Response(401),
        ],
    )
    def test_what_is_no_answer(self, handler: Handler) -> None:
        with pytest.raises(Unavailable, match="rerank server"):
            ask(handler)

    def test_waits_only_so_long(self) -> None:
        async def handler(request: httpx.Request) -> httpx.Response:
            await asyncio.sleep(60)
            return httpx.Response(200)

        with pytest.raises(Unavailable, match=r"0\.05 s"):
            ask(handler, seconds=0.05)

    def test_nobody_there(self) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused")

        with pytest.raises(Unavailable, match="refused"):
            ask(handler)
