"""What embedding servers answer, and what of it is taken."""

import asyncio
import base64
import struct
from typing import Any

import httpx
import pytest

from db.errors import Unavailable
from serving.embeddings import embed_queries


def packed(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def embed(embedding: Any, listing: Any = None) -> bytes:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=listing or {"data": [{"id": "default"}]})
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": embedding}]})

    async def ask() -> bytes:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
            _, [vector] = await embed_queries(client, "http://server", ["text"])
            return vector

    return asyncio.run(ask())


def test_numbers_are_as_good_as_base64() -> None:
    assert embed([0.5, -1.0]) == embed(packed(0.5, -1.0)) == struct.pack("<2f", 0.5, -1.0)


@pytest.mark.parametrize(
    "embedding",
    [
        packed(1.0, float("nan")),
        packed(1.0, float("inf")),
        packed(70_000.0),
        packed(),
        "AAA=",
        [None],
        3,
        None,
    ],
)
def test_what_is_no_vector_is_the_servers_fault(embedding: Any) -> None:
    with pytest.raises(Unavailable):
        embed(embedding)


def test_a_list_of_models_that_is_none_is_the_servers_fault() -> None:
    with pytest.raises(Unavailable):
        embed([1.0], listing=["default"])
