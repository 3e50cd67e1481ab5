"""What stands before a backend, against a server that misbehaves byte by byte."""

import asyncio
import contextlib
import json
from typing import Any

import pytest

from db.errors import Busy, Unavailable
from serving.backends.guarding import Guarded, is_whole_json
from serving.backends.interface import Answer, Backend, Request, request_of
from serving.local_port import free_port
from tests.serving.backends.asking import ask, with_backend
from tests.serving.backends.stand_in import EVENTS, WHOLE, StandIn
from tests.waiting import wait_until

QUICK = {"timeout": {"first_byte": 0.2, "between_bytes": 0.1, "queue": 0.2}}


def error_in(body: bytes) -> dict[str, Any]:
    """The error event at the end of a stream."""
    event = body.removeprefix(EVENTS[0])
    assert event.endswith(b"\n\n"), event
    error: dict[str, Any] = json.loads(event.removeprefix(b"data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


class TestPassedOn:
    def test_a_stream_byte_for_byte(self, server: StandIn) -> None:
        assert with_backend(server.url, lambda there: ask(there, "streams")) == (200, b"".join(EVENTS))

    def test_body_and_key_go_out_as_given(self, server: StandIn) -> None:
        content = b'{"b":1,  "model":"any", "a":"\xc3\xa9"}'

        async def work(there: Guarded) -> bytes:
            answer = await there.ask("chat", Request("any", {}, content))
            return b"".join([chunk async for chunk in answer.chunks])

        assert with_backend(server.url + "/v1/", work, key="hush") == WHOLE
        assert server.bodies == [content]
        assert server.paths == ["/v1/chat/completions"]
        assert server.headers[0]["authorization"] == "Bearer hush"
        assert server.headers[0]["accept-encoding"] == "identity"

    def test_its_own_refusals(self, server: StandIn) -> None:
        status, body = with_backend(server.url, lambda there: ask(there, "wrong"))
        assert (status, json.loads(body)["error"]["param"]) == (400, "stop")


class TestBeforeTheFirstByte:
    @pytest.mark.parametrize("model", ["hangs", "hangs-after-its-head"])
    def test_one_that_hangs_is_given_up_and_let_go(self, server: StandIn, model: str) -> None:
        with pytest.raises(Unavailable, match=r"did not begin to answer within 0\.2 s") as caught:
            with_backend(server.url, lambda there: ask(there, model, stream=True), **QUICK)
        assert caught.value.code == "backend_timeout"
        wait_until(lambda: server.left[model] == 1, told=lambda: "the request behind was left running")

    def test_a_dropped_connection_is_tried_once_more(self, server: StandIn) -> None:
        assert with_backend(server.url, lambda there: ask(there, "drops-once")) == (200, WHOLE)
        assert server.asked["drops-once"] == 2

    def test_and_no_oftener_than_the_settings_say(self, server: StandIn) -> None:
        with pytest.raises(Unavailable, match="does not answer"):
            with_backend(server.url, lambda there: ask(there, "drops"), retries=2)
        assert server.asked["drops"] == 3

    def test_nobody_there(self) -> None:
        with pytest.raises(Unavailable, match=r"'there'.*does not answer") as caught:
            with_backend(f"http://127.0.0.1:{free_port()}", lambda there: ask(there, "any"))
        assert caught.value.code == "model_server_unavailable"

    def test_a_server_that_cannot_now_says_when(self, server: StandIn) -> None:
        with pytest.raises(Unavailable, match="Loading model") as caught:
            with_backend(server.url, lambda there: ask(there, "restarting"))
        assert caught.value.retry_after_seconds == 3
        assert server.asked["restarting"] == 1

    def test_a_refused_key_is_ours_to_mend(self, server: StandIn) -> None:
        with pytest.raises(Unavailable, match=r"`key` of \[there\] in LATHE_BACKENDS"):
            with_backend(server.url, lambda there: ask(there, "forbidden"))

    def test_it_is_asked_again_once_it_is_back(self) -> None:
        port = free_port()

        async def work(there: Guarded) -> tuple[int, bytes]:
            with pytest.raises(Unavailable):
                await ask(there, "any")
            server = StandIn().start(port)
            try:
                first = await ask(there, "any")
                server.stop()  # which breaks a connection that we keep open
                server.start(port)
                return first if first == await ask(there, "any") else (0, b"")
            finally:
                server.stop()

        assert with_backend(f"http://127.0.0.1:{port}", work) == (200, WHOLE)


class TestAfterTheFirstByte:
    def test_a_stream_that_dies_amid_an_event(self, server: StandIn) -> None:
        status, body = with_backend(server.url, lambda there: ask(there, "dies", stream=True))
        assert (status, body[: len(EVENTS[0])]) == (200, EVENTS[0])
        assert "stopped in mid-answer" in error_in(body)["message"]
        assert server.asked["dies"] == 1

    def test_a_stream_that_ends_before_its_end(self, server: StandIn) -> None:
        _, body = with_backend(server.url, lambda there: ask(there, "ends-early", stream=True))
        assert error_in(body)["code"] == "unavailable"

    def test_a_stream_that_stalls(self, server: StandIn) -> None:
        _, body = with_backend(server.url, lambda there: ask(there, "stalls", stream=True), **QUICK)
        assert error_in(body)["code"] == "backend_timeout"

    @pytest.mark.parametrize("model", ["half", "half-that-looks-whole", "deep", "page"])
    def test_half_an_answer_is_none(self, server: StandIn, model: str) -> None:
        with pytest.raises(Unavailable, match="stopped in mid-answer"):
            with_backend(server.url, lambda there: ask(there, model))

    def test_of_a_large_answer_its_ends_are_looked_at(self) -> None:
        large = b'{"data": [' + b"1," * 200_000
        assert not is_whole_json(large)
        assert is_whole_json(large + b"1]}\n")

    def test_who_hangs_up_leaves_nothing_behind(self, server: StandIn) -> None:
        async def work(there: Guarded) -> int:
            answer = await there.ask("chat", request_of("stalls", {"stream": True}))
            assert await anext(answer.chunks) == EVENTS[0]
            await answer.close()
            return there.door.inside

        assert with_backend(server.url, work) == 0

    def test_who_reads_slowly_is_not_taken_for_a_backend_that_stalls(self, server: StandIn) -> None:
        async def work(there: Guarded) -> bytes:
            answer, body = await there.ask("chat", request_of("streams", {"stream": True})), b""
            async for chunk in answer.chunks:
                await asyncio.sleep(0.25)
                body += chunk
            return body

        assert with_backend(server.url, work, **QUICK) == b"".join(EVENTS)


class TestLimit:
    def test_so_many_at_once_so_many_wait_and_the_rest_is_told_when_to_come_back(
        self, server: StandIn
    ) -> None:
        async def work(there: Guarded) -> tuple[list[Any], int]:
            asked = [asyncio.create_task(ask(there, "waits")) for _ in range(5)]
            while server.asked["waits"] < 2 or not all(task.done() for task in asked[4:]):
                await asyncio.sleep(0.01)
            at_once = server.asked["waits"]
            server.go_on.set()
            return await asyncio.gather(*asked, return_exceptions=True), at_once

        answers, at_once = with_backend(server.url, work, concurrency=2, queue=2)
        assert at_once == 2
        assert answers[:4] == [(200, WHOLE)] * 4
        assert isinstance(answers[4], Busy)
        assert 1 <= (answers[4].retry_after_seconds or 0) <= 60

    def test_nobody_waits_for_ever(self, server: StandIn) -> None:
        async def work(there: Guarded) -> int:
            first = asyncio.create_task(ask(there, "waits"))
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await ask(there, "any")
            server.go_on.set()
            await first
            return there.door.waiting + there.door.inside

        limits = {"concurrency": 1, "timeout": {"queue": 0.1}}
        assert with_backend(server.url, work, **limits) == 0

    def test_who_leaves_the_queue_gives_up_the_turn(self, server: StandIn) -> None:
        async def work(there: Guarded) -> tuple[int, bytes]:
            first, second = (asyncio.create_task(ask(there, "waits")) for _ in range(2))
            while there.door.waiting == 0:
                await asyncio.sleep(0.01)
            second.cancel()
            third = asyncio.create_task(ask(there, "any"))
            await asyncio.sleep(0.01)
            server.go_on.set()
            await first
            return await third

        assert with_backend(server.url, work, concurrency=1) == (200, WHOLE)
        assert server.asked["waits"] == 1

    def test_failed_requests_give_their_places_back(self, server: StandIn) -> None:
        async def work(there: Guarded) -> int:
            for model in ("drops", "forbidden", "half", "hangs", "wrong"):
                with contextlib.suppress(Unavailable):
                    await ask(there, model)
            return there.door.inside

        assert with_backend(server.url, work, concurrency=1, **QUICK) == 0


class Counting(Backend):
    """Loads and unloads on paper."""

    unloaded: list[str]

    async def chat(self, request: Request) -> Answer:
        if request.model == "fails":
            raise ZeroDivisionError
        return await super().chat(request)

    async def complete(self, request: Request) -> Answer:
        async def chunks() -> Any:
            yield b"{}"

        return Answer(200, "application/json", chunks())

    async def unload(self, model: str) -> None:
        self.unloaded = [*getattr(self, "unloaded", []), model]


class TestKeepAlive:
    def test_an_idle_model_is_unloaded_and_a_used_one_stays(self) -> None:
        async def work(there: Guarded) -> list[str]:
            await ask(there, "idle", route="complete")
            for _ in range(8):
                await asyncio.sleep(0.03)
                await ask(there, "used", route="complete")
            backend = there.backend
            assert isinstance(backend, Counting)
            return list(backend.unloaded)

        assert with_backend("", work, kind=Counting, type="x:Y", keep_alive=0.12) == ["idle"]


class TestOwnClasses:
    def test_what_one_raises_is_told_as_its_failure(self) -> None:
        with pytest.raises(Unavailable, match="failed: ZeroDivisionError") as caught:
            with_backend("", lambda there: ask(there, "fails"), kind=Counting, type="x:Y")
        assert caught.value.code == "backend_failed"
