"""Several answers from a backend that gives one at a time, and fields that a kind of server passes over."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest

from db.errors import Busy, InvalidInput
from serving.backends.guarding import Guarded
from serving.backends.heeding import OLLAMA
from serving.backends.interface import request_of
from serving.backends.openai_server import LlamaServer
from tests.serving.backends.asking import ask, with_backend
from tests.serving.backends.stand_in import StandIn


def at(server: StandIn, work: Any, **settings: Any) -> Any:
    return with_backend(server.url, work, kind=LlamaServer, type="llama_server", **settings)


def chunks_of(content: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in content.decode().split("\n\n") if line]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


class TestChoices:
    def test_each_is_a_request_of_its_own(self, server: StandIn) -> None:
        status, content = at(server, lambda there: ask(there, "any", n=3, seed=5))
        assert status == 200
        assert [choice["index"] for choice in json.loads(content)["choices"]] == [0, 1, 2]
        sent = [json.loads(body) for body in server.bodies]
        assert sorted(body["seed"] for body in sent) == [5, 6, 7]
        assert not [body for body in sent if "n" in body]

    @pytest.mark.parametrize("concurrency", [1, 2, None])
    def test_streams_come_as_one(self, server: StandIn, concurrency: int | None) -> None:
        settings = {"concurrency": concurrency, "queue": 0}
        _, content = at(server, lambda there: ask(there, "streams", n=3, stream=True), **settings)
        *chunks, last = chunks_of(content)
        said = Counter(choice["index"] for chunk in chunks for choice in chunk["choices"])
        assert (said, last) == ({0: 1, 1: 1, 2: 1}, "[DONE]")
        assert server.asked["streams"] == 3

    def test_an_error_of_one_is_the_answer(self, server: StandIn) -> None:
        status, content = at(server, lambda there: ask(there, "wrong", n=2))
        assert (status, json.loads(content)["error"]["param"]) == (400, "stop")
        status, _ = at(server, lambda there: ask(there, "wrong", n=2, stream=True))
        assert status == 400

    def test_one_that_dies_ends_the_stream_with_an_error(self, server: StandIn) -> None:
        _, content = at(server, lambda there: ask(there, "dies", n=2, stream=True))
        assert "stopped in mid-answer" in chunks_of(content)[-1]["error"]["message"]

    def test_who_hangs_up_leaves_nothing_behind(self, server: StandIn) -> None:
        async def work(there: Guarded) -> int:
            answer = await there.ask("chat", request_of("stalls", {"messages": [], "n": 3, "stream": True}))
            await anext(answer.chunks)
            await answer.close()
            async with asyncio.timeout(10):
                while server.left["stalls"] < server.asked["stalls"]:
                    await asyncio.sleep(0.01)
            return there.door.inside

        assert at(server, work, concurrency=8) == 0

    def test_a_full_backend_is_told_of(self, server: StandIn) -> None:
        async def work(there: Guarded) -> None:
            stalling = await there.ask("chat", request_of("stalls", {"messages": [], "stream": True}))
            try:
                with pytest.raises(Busy):
                    await ask(there, "any", n=2)
            finally:
                await stalling.close()

        at(server, work, concurrency=1, queue=0)

    @pytest.mark.parametrize("number", [0, 129, "2", True, 1.5])
    def test_a_number_that_is_none(self, server: StandIn, number: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            at(server, lambda there: ask(there, "any", n=number))
        assert caught.value.param == "n"


class TestOllama:
    def test_its_words(self) -> None:
        body = {
            "messages": [{"role": "developer", "content": "Be good."}, {"role": "user", "content": "?"}],
            "max_completion_tokens": 3,
            "tools": [{}],
            "tool_choice": "none",
        }
        adapted = OLLAMA.adapted(request_of("m", body), "there")
        assert adapted.body == {
            "messages": [{"role": "system", "content": "Be good."}, {"role": "user", "content": "?"}],
            "max_tokens": 3,
        }
        assert json.loads(adapted.content) == {**adapted.body, "model": "m"}

    def test_what_it_knows_stays_as_it_came(self) -> None:
        request = request_of("m", {"messages": [], "tools": [{}], "tool_choice": "auto", "logprobs": True})
        assert OLLAMA.adapted(request, "there") is request

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("tool_choice", "required"),
            ("parallel_tool_calls", False),
            ("logit_bias", {"1": 5}),
            ("best_of", 2),
        ],
    )
    def test_what_it_would_pass_over(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidInput, match="not heeded") as caught:
            OLLAMA.adapted(request_of("m", {field: value}), "there")
        assert (caught.value.param, caught.value.code) == (field, "not_supported")
