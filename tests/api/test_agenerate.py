"""/agenerate and /embeddings, as small clients speak; streams are read by the decoder of OpenAI's client."""

import json

import httpx
import pytest
from openai._streaming import ServerSentEvent, SSEDecoder

from api.chat.text_stream import text_event
from tests.api.conftest import Publish, error_of
from tests.api.model_server import CHUNKS, VECTOR, ModelServer

Backend = tuple[ModelServer, str]
PROMPT = {"prompt": "Hello"}


def events(content: bytes) -> list[ServerSentEvent]:
    return list(SSEDecoder().iter_bytes(iter([content])))


class TestStream:
    def test_the_text_in_pieces_and_nothing_else(
        self, api: httpx.Client, publish: Publish, backend: Backend
    ) -> None:
        served = publish("pours")
        params = {"n_predict": 50, "temp": 0.5, "stop": "END", "seed": 3}
        answer = api.post("/agenerate", json={**PROMPT, "model": "pours", "params": params})
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events(answer.content)
        assert [event.data for event in found] == [f"w{number} " for number in range(CHUNKS)]
        assert {event.event for event in found} == {None}
        assert json.loads(backend[0].bodies[-1]) == {
            "model": served, "messages": [{"role": "user", "content": "Hello"}], "stream": True,
            "max_tokens": 50, "temperature": 0.5, "stop": ["END"], "seed": 3,
        }  # fmt: skip

    @pytest.mark.parametrize("params", [None, {}, {"stop": []}])
    def test_asks_the_newest_model_with_what_small_clients_send(
        self, api: httpx.Client, publish: Publish, backend: Backend, params: object
    ) -> None:
        served = publish("fresh-pour")
        assert api.post("/agenerate", json={**PROMPT, "params": params}).status_code == 200
        assert json.loads(backend[0].bodies[-1])["model"] == served
        assert api.post("/generate", json={**PROMPT, "params": params}).json()["model"] == "fresh-pour"

    @pytest.mark.parametrize("text", ["a", " a ", "\n", "a\nb", "\n\n", "é\u2028\u0085x", "data: x", ":x"])
    def test_a_piece_comes_out_as_it_was(self, text: str) -> None:
        first, last = events(text_event(text) + text_event("end"))
        assert (first.data, last.data) == (text, "end")

    def test_an_error_in_mid_answer_is_an_event_of_its_own(self, api: httpx.Client, publish: Publish) -> None:
        publish("broken-pour")
        *pieces, last = events(api.post("/agenerate", json={**PROMPT, "model": "broken-pour"}).content)
        assert [event.data for event in pieces] == ["w0 ", "w1 "]
        assert last.event == "error"
        assert last.json()["error"]["type"] == "server_error"

    @pytest.mark.parametrize(
        ("name", "status", "code"),
        [("refuses-pour", 400, "exceed_context_size_error"), ("loading-pour", 503, "unavailable")],
    )
    def test_an_error_before_it_has_its_status(
        self, api: httpx.Client, publish: Publish, name: str, status: int, code: str
    ) -> None:
        publish(name)
        answer = api.post("/agenerate", json={**PROMPT, "model": name})
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)

    def test_an_unknown_field_is_named(self, api: httpx.Client) -> None:
        answer = api.post("/agenerate", json={**PROMPT, "params": {"top_n": 1}})
        assert answer.status_code == 400
        assert "top_n" in error_of(answer)["message"]


class TestEmbeddings:
    def test_a_text_becomes_a_list_of_numbers(self, api: httpx.Client, backend: Backend) -> None:
        assert api.post("/embeddings", json={"text": "What is a lathe?"}).json() == VECTOR
        assert json.loads(backend[0].bodies[-1])["input"] == ["What is a lathe?"]

    @pytest.mark.parametrize("body", [{}, {"text": ""}, {"text": ["a"]}, {"text": "a", "model": "x"}])
    def test_bad_bodies(self, api: httpx.Client, body: dict[str, object]) -> None:
        answer = api.post("/embeddings", json=body)
        assert answer.status_code == 400
        assert error_of(answer)["param"] in ("text", "model")
