"""Ollama, against a strict stand-in for what 0.24, 0.32 and 0.34 do: the routes of its own, by the official
client.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput, NotFound
from db.settings import Settings
from serving import llama_cpp
from serving.backends.guarding import Guarded
from serving.backends.interface import request_of
from serving.backends.ollama_server import OllamaServer, options_of
from serving.embedding_model import ensure_embedding_model
from serving.ollama import Ollama
from tests.serving.backends.asking import ask, with_backend
from tests.serving.backends.stand_in import EVENTS, WHOLE, StandIn
from tests.serving.fake_ollama import FakeOllama
from tests.serving.random_gguf import write_random_gguf

HELLO = [{"role": "user", "content": "hi"}]


OLDER, NEWEST = ("0.24.0", "0.32.15"), "0.34.1"


@pytest.fixture(params=[*OLDER, NEWEST])
def fake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeOllama]:
    server = FakeOllama(tmp_path, request.param).start()
    write_random_gguf(tmp_path / "model.gguf")
    client = Ollama(server.url)
    client.create("m", tmp_path / "model.gguf", template=None, parameters={})
    client.close()
    yield server
    server.stop()


def at(url: str, work: Callable[[Guarded], Any], **settings: Any) -> Any:
    return with_backend(url, work, kind=OllamaServer, type="ollama", **settings)


class TestOwnRoute:
    def test_what_only_it_heeds_goes_there_and_comes_back_in_openais_shape(self, fake: FakeOllama) -> None:
        told = {"messages": HELLO, "top_k": 3, "max_tokens": 5, "temperature": 0, "stop": "x"}
        status, content = at(fake.url, lambda there: ask(there, "m", **told))
        answer = json.loads(content)
        assert (status, answer["object"], answer["choices"][0]["message"]["role"]) == (
            200, "chat.completion", "assistant",
        )  # fmt: skip
        assert answer["choices"][0]["finish_reason"] in ("stop", "length")
        assert answer["usage"]["prompt_tokens"] > 0
        assert fake.options == [{"top_k": 3, "num_predict": 5, "temperature": 0, "stop": ["x"]}]

    def test_a_model_that_is_not_there(self, fake: FakeOllama) -> None:
        status, content = at(fake.url, lambda there: ask(there, "nobody", messages=HELLO, top_k=3))
        assert status == 404
        assert "nobody" in json.loads(content)["error"]["message"]

    @pytest.mark.parametrize("taken", [{"tools": [{}]}, {"logprobs": True}])
    def test_what_neither_route_could_do_whole_is_refused(self, taken: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput, match="leave one out") as caught:
            at("http://there", lambda there: ask(there, "m", messages=HELLO, top_k=3, **taken))
        assert caught.value.param in taken


class TestOpenAIRoute:
    def test_all_others_go_on_as_they_came(self, server: StandIn) -> None:
        async def work(there: Guarded) -> list[tuple[int, bytes]]:
            return [await ask(there, "any", temperature=1), await ask(there, "streams", stream=True)]

        assert at(server.url, work) == [(200, WHOLE), (200, b"".join(EVENTS))]
        assert server.paths == ["/v1/chat/completions"] * 2


class TestEmbeddings:
    # Each loads a real model, and embeds as the others do.
    @pytest.mark.parametrize(
        "fake", [NEWEST, *(pytest.param(older, marks=pytest.mark.slow) for older in OLDER)], indirect=True
    )
    def test_by_a_model_that_embeds(self, fake: FakeOllama, tmp_path: Path) -> None:
        settings = Settings()
        weights = ensure_embedding_model(llama_cpp.require_tools(settings), settings)
        client = Ollama(fake.url)
        client.create("all-minilm", weights, template=None, parameters={})
        client.close()
        status, content = at(fake.url, lambda there: _embed(there, "all-minilm"))
        vectors = [row["embedding"] for row in json.loads(content)["data"]]
        assert (status, [len(vector) for vector in vectors]) == (200, [384, 384])
        assert vectors[0] != vectors[1]

    def test_by_none_that_is_there(self, fake: FakeOllama) -> None:
        status, content = at(fake.url, lambda there: _embed(there, "nobody"))
        assert status == 404
        assert "nobody" in json.loads(content)["error"]

    def test_by_a_model_of_chats(self, fake: FakeOllama) -> None:
        status, content = at(fake.url, lambda there: _embed(there, "m"))
        assert status in (500, 501)
        assert "does not support embeddings" in json.loads(content)["error"]


async def _embed(there: Guarded, model: str) -> tuple[int, bytes]:
    answer = await there.ask("embed", request_of(model, {"input": ["a lathe", "a mill"]}))
    return answer.status, b"".join([chunk async for chunk in answer.chunks])


class TestMemory:
    def test_it_loads_and_unloads(self, fake: FakeOllama) -> None:
        async def work(there: Guarded) -> list[int]:
            loaded = []
            await there.load("m")
            loaded.append(len(fake.loaded()["models"]))
            await there.unload("m")
            loaded.append(len(fake.loaded()["models"]))
            await there.unload("nobody")
            with pytest.raises(NotFound):
                await there.load("nobody")
            return loaded

        assert at(fake.url, work) == [1, 0]

    def test_keep_alive_reaches_it_from_the_settings_and_from_a_request(self, fake: FakeOllama) -> None:
        async def work(there: Guarded) -> None:
            await ask(there, "m", messages=HELLO, top_k=3, max_tokens=1)
            deadline = time.monotonic() + 20
            while not fake.kept:  # told behind the answer's back
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            await ask(there, "m", messages=HELLO, keep_alive="5m", max_tokens=1)
            await there.load("m")

        at(fake.url, work, keep_alive=1800)
        assert fake.kept == [1800, "5m", 1800]

    def test_health(self, fake: FakeOllama) -> None:
        assert at(fake.url, lambda there: there.health()) is None


class TestOptions:
    @pytest.mark.parametrize(
        ("body", "options"),
        [
            ({"max_completion_tokens": 3, "seed": 1}, {"num_predict": 3, "seed": 1}),
            ({"repeat_penalty": 1.1, "options": {"num_ctx": 512}}, {"repeat_penalty": 1.1, "num_ctx": 512}),
            ({"stop": ["a"], "top_p": None}, {"stop": ["a"]}),
        ],
    )
    def test_by_its_own_names(self, body: dict[str, Any], options: dict[str, Any]) -> None:
        assert options_of(body) == options
