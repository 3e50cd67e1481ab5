"""Measuring for a model: by a real llama-server, and what others tell."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest

from db.errors import InvalidInput, Unavailable
from serving.context_window import Gauge, open_gauge
from serving.openai_compatible import make_async_client
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import write_random_gguf

Result = TypeVar("Result")
Handler = Callable[[httpx.Request], httpx.Response]
MESSAGES = [{"role": "system", "content": "Thé 漢"}, {"role": "user", "content": "the question<|end|>"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaProcess]:
    path = tmp_path_factory.mktemp("gauge") / "model.gguf"
    write_random_gguf(path)
    process = LlamaProcess(path)
    yield process
    process.stop()


def measure(url: str, work: Callable[[Gauge], Any], *, kind: str = "llama_server") -> Any:
    async def run() -> Any:
        async with make_async_client() as client:
            gauge = await open_gauge(client, kind=kind, url=url, model="model", api_key="")
            return gauge.window, await work(gauge)

    return asyncio.run(run())


def told(handler: Handler, *, kind: str = "llama_server") -> Gauge:
    """The gauge for a server that cannot run here."""

    async def run() -> Gauge:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            return await open_gauge(client, kind=kind, url="http://there", model="model", api_key="k")

    return asyncio.run(run())


class TestLlamaServer:
    def test_counts_a_prompt_as_the_chat_route_does(self, llama: LlamaProcess) -> None:
        window, prompt = measure(llama.url, lambda gauge: gauge.prompt({"messages": MESSAGES}))
        answer = llama.server.chat(MESSAGES, max_tokens=1)
        assert prompt.tokens == answer["usage"]["prompt_tokens"]
        assert "the question" in prompt.text
        assert window == 256

    def test_counts_many_texts_at_once_and_sees_control_tokens(self, llama: LlamaProcess) -> None:
        texts = ["the path", "", "a <|end|> th", "x"]
        _, counted = measure(llama.url, lambda gauge: gauge.count(texts))
        # A token a byte, but for "th"; with the line end after each text but the last.
        assert counted.tokens == [7, 1, 12, 1]
        assert counted.controls == {"<|end|>"}

    def test_what_a_tokenizer_drops_is_shared_by_length(self, llama: LlamaProcess) -> None:
        _, counted = measure(llama.url, lambda gauge: gauge.count(["漢字" * 20, "x" * 120]))
        assert sum(counted.tokens) == 121
        assert counted.tokens[0] == pytest.approx(60, abs=1)

    def test_a_conversation_that_the_template_refuses(self, llama: LlamaProcess) -> None:
        with pytest.raises(InvalidInput, match="content") as refused:
            measure(llama.url, lambda gauge: gauge.prompt({"messages": [{"role": "user"}]}))
        assert refused.value.param == "messages"


class TestOthers:
    @pytest.mark.parametrize(
        ("shown", "window"),
        [
            ({"parameters": 'stop "x"\nnum_ctx                        512', "model_info": {}}, 512),
            ({"model_info": {"llama.context_length": 1024, "llama.block_count": 2}}, 1024),
            ({"model_info": {"llama.context_length": 131072}}, 4096),
        ],
    )
    def test_ollama(self, shown: dict[str, Any], window: int) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            assert (request.url.path, json.loads(request.content)) == ("/api/show", {"model": "model"})
            return httpx.Response(200, json=shown)

        assert told(handler, kind="ollama").window == window

    @pytest.mark.parametrize(("row", "window"), [({"max_model_len": 777}, 777), ({}, 4096)])
    def test_a_list_of_models(self, row: dict[str, int], window: int) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            assert request.headers["authorization"] == "Bearer k"
            if request.url.path == "/props":
                return httpx.Response(404, json={"detail": "Not Found"})
            return httpx.Response(200, json={"data": [{"id": "other"}, {"id": "model", **row}]})

        assert told(handler).window == window

    def test_bytes_are_a_bound(self, llama: LlamaProcess) -> None:
        def handler(request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"model_info": {}})

        bound = told(handler, kind="ollama")
        body = {"messages": MESSAGES}
        counted = asyncio.run(bound.prompt(body)).tokens
        assert counted >= llama.server.chat(MESSAGES, max_tokens=1)["usage"]["prompt_tokens"]
        assert asyncio.run(bound.count(["漢"])).tokens == [5]

    @pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"default_generation_settings": {"n_ctx": "x"}}'])
    def test_a_foreign_server_is_named(self, answer: bytes) -> None:
        with pytest.raises(Unavailable, match="does not answer as a llama-server"):
            told(lambda request: httpx.Response(200, content=answer))
