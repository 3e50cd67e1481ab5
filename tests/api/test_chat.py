"""Chat, completions, generation and embeddings: passed on, and back, byte for byte."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from api.app import create_app
from api.chat.body import read_body
from db.errors import InvalidInput
from db.settings import Settings
from tests.api.conftest import Publish, error_of, serving
from tests.api.model_server import ANSWER, CHUNKS, VECTOR, ModelServer, streamed_bytes
from tests.waiting import wait_until

Backend = tuple[ModelServer, str]
HELLO = [{"role": "user", "content": "Hello"}]


def chat(api: httpx.Client, model: str, **more: Any) -> httpx.Response:
    return api.post("/v1/chat/completions", json={"model": model, "messages": HELLO, **more})


class TestPassedOn:
    def test_every_byte_but_the_models_name(
        self, api: httpx.Client, publish: Publish, backend: Backend
    ) -> None:
        served = publish("bytes")
        asked = (
            b'{ "temperature":1.0e-5,"model" : "by\\u0074es","messages":[{"role":"user",'
            b'"content":"h\\u00e9"}],\n"model":"bytes","x":[ ] }'
        )
        answer = api.post("/v1/chat/completions", content=asked, headers={"content-type": "application/json"})
        assert answer.content == ANSWER
        quoted = f'"{served}"'.encode()
        assert backend[0].bodies[-1] == asked.replace(b'"by\\u0074es"', quoted).replace(b'"bytes"', quoted)
        assert answer.headers["x-request-id"].startswith("req-")

    @pytest.mark.parametrize("stream", [False, True])
    def test_the_answer_names_the_model_as_it_was_asked_for(
        self, api: httpx.Client, publish: Publish, stream: bool
    ) -> None:
        publish('told"as-asked', backend_name="served")
        answer = chat(api, 'told"as-asked', stream=stream)
        whole = streamed_bytes() if stream else ANSWER
        named = rb'"told\"as-asked"'
        assert answer.content == whole.replace(b'"model":"served"', b'"model":' + named).replace(
            b'"model": "served"', b'"model": ' + named
        )
        assert b'"served"' not in answer.content

    def test_streams_too(self, api: httpx.Client, publish: Publish) -> None:
        publish("streams")
        answer = chat(api, "streams", stream=True)
        assert answer.content == streamed_bytes()
        assert answer.headers["content-type"].startswith("text/event-stream")

    def test_a_stream_comes_as_it_is_made(self, api: httpx.Client, publish: Publish) -> None:
        publish("slow-stream")
        seen = 0
        body = {"model": "slow-stream", "messages": HELLO, "stream": True}
        with api.stream("POST", "/v1/chat/completions", json=body) as answer:
            for chunk in answer.iter_raw():
                seen = max(seen, len(chunk))
        assert seen < len(streamed_bytes()) / 4

    @pytest.mark.parametrize("reference", ["many", "many:q8_0", "many@1", "many@2:Q8_0"])
    def test_every_name_of_a_model(
        self, api: httpx.Client, publish: Publish, backend: Backend, reference: str
    ) -> None:
        publish("many", quantizations=("Q4_K_M", "Q8_0"))
        if reference != "many@1":
            publish("many", quantizations=("Q4_K_M", "Q8_0"))
        assert chat(api, reference).status_code == 200
        served = json.loads(backend[0].bodies[-1])["model"]
        assert ("q8_0" if "8" in reference else "q4_k_m") in served

    def test_completions(self, api: httpx.Client, publish: Publish) -> None:
        publish("completes")
        answer = api.post("/v1/completions", json={"model": "completes", "prompt": "Once"})
        assert answer.json()["choices"][0]["text"] == "more"


class TestErrors:
    def test_an_unknown_model_lists_those_there_are(self, api: httpx.Client, publish: Publish) -> None:
        publish("known")
        answer = chat(api, "nobody")
        assert answer.status_code == 404
        error = error_of(answer)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "known" in error["message"]

    @pytest.mark.parametrize("name", ["a\\u0000b", "a\\ud800b", "known@" + "9" * 5000])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings", "/generate"])
    def test_what_can_be_no_models_name_is_no_500(
        self, api: httpx.Client, publish: Publish, path: str, name: str
    ) -> None:
        publish("known")
        asked = "prompt" if path == "/generate" else "input"
        body = f'{{"model": "{name}", "{asked}": "x"}}'
        answer = api.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 404)
        assert error_of(answer)["param"] == "model"

    def test_one_that_is_not_made_yet_says_how(self, api: httpx.Client) -> None:
        error = error_of(chat(api, "tiny"))
        assert error["code"] == "model_not_ready"
        assert "base_model" in error["message"]

    @pytest.mark.parametrize(
        ("name", "status", "code"),
        [
            ("refuses-all", 400, "exceed_context_size_error"),
            ("swamped-now", 400, "exceed_context_size_error"),
            ("loading-now", 503, "unavailable"),
        ],
    )
    def test_the_backends_own_keep_their_status_unless_it_misleads(
        self, api: httpx.Client, publish: Publish, name: str, status: int, code: str
    ) -> None:
        publish(name)
        answer = chat(api, name, stream=True)
        assert answer.status_code == status
        assert error_of(answer)["code"] == code
        assert ("retry-after" in answer.headers) == (status == 503)

    def test_a_file_that_the_backend_does_not_have(
        self, api: httpx.Client, publish: Publish, backend: Backend
    ) -> None:
        backend[0].models.discard(publish("lost"))
        answer = chat(api, "lost")
        assert answer.status_code == 404
        assert "not found" in error_of(answer)["message"]

    def test_nobody_there_is_503_with_retry_after(self, settings: Settings, publish: Publish) -> None:
        publish("away")
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
            app = create_app(
                settings.model_copy(update={"chat_server_url": url, "embedding_server_url": url})
            )
            with serving(app) as address, httpx.Client(base_url=address, trust_env=False) as api:
                for answer in (
                    chat(api, "away"), api.post("/v1/embeddings", json={"model": "default", "input": "x"})
                ):  # fmt: skip
                    assert answer.status_code == 503
                    assert answer.headers["retry-after"] == "5"
                    assert error_of(answer)["code"] == "model_server_unavailable"

    def test_a_stream_that_breaks_ends_with_an_error(self, api: httpx.Client, publish: Publish) -> None:
        publish("broken-stream")
        frames = chat(api, "broken-stream", stream=True).text.strip().split("\n\n")
        assert len(frames) == 3
        assert json.loads(frames[-1].removeprefix("data: "))["error"]["type"] == "server_error"

    @pytest.mark.parametrize(
        "body", ["", "[]", "{", '{"model":1}', "{}", '{"model":"a"}x', '{"model":"a",}', "\xff"]
    )
    def test_a_body_that_cannot_be_passed_on(self, api: httpx.Client, body: str) -> None:
        headers = {"content-type": "application/json"}
        answer = api.post("/v1/chat/completions", content=body.encode("latin-1"), headers=headers)
        assert answer.status_code == 400
        error_of(answer)


class TestHangUp:
    @pytest.mark.parametrize("name", ["hangs-first", "slow-second"])
    def test_ends_the_request_behind(
        self, api_url: str, publish: Publish, backend: Backend, name: str
    ) -> None:
        publish(name)
        server = backend[0]
        begun, left = server.begun, server.left
        body = json.dumps({"model": name, "messages": HELLO, "stream": name.startswith("slow")}).encode()
        address = urlsplit(api_url)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: server.begun == begun + 1)
        wait_until(lambda: server.left == left + 1)
        assert CHUNKS * 0.05 > 1, "the stand-in was still at it"


class TestGenerate:
    def test_one_prompt(self, api: httpx.Client, publish: Publish, backend: Backend) -> None:
        served = publish("generates")
        params = {
            "n_predict": 5,
            "temp": 0,
            "top_k": 3,
            "top_p": 0.5,
            "stop": ["x"],
            "repeat_penalty": 1.1,
            "seed": 7,
        }
        body = {"prompt": "Hello", "model": "generates", "params": params}
        assert api.post("/generate", json=body).json() == {
            "text": "Answer",
            "model": "generates",
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "completion_tokens": 2,
        }
        assert json.loads(backend[0].bodies[-1]) == {
            "model": served, "messages": HELLO, "max_tokens": 5, "temperature": 0, "top_k": 3, "top_p": 0.5,
            "stop": ["x"], "repeat_penalty": 1.1, "seed": 7,
        }  # fmt: skip

    def test_minus_one_is_no_limit_and_any_seed(
        self, api: httpx.Client, publish: Publish, backend: Backend
    ) -> None:
        publish("unlimited")
        params = {"n_predict": -1, "seed": -1}
        api.post("/generate", json={"prompt": "Hello", "model": "unlimited", "params": params})
        assert set(json.loads(backend[0].bodies[-1])) == {"model", "messages"}

    def test_ollama_is_asked_in_its_own_words(
        self, settings: Settings, publish: Publish, backend: Backend
    ) -> None:
        publish("on-ollama", backend="ollama")
        told = {"ollama_host": backend[1], "chat_server_url": None}
        params = {"n_predict": 5, "temp": 0.5, "top_k": 3, "repeat_penalty": 1.1}
        app = create_app(settings.model_copy(update=told))
        with serving(app) as url, httpx.Client(base_url=url, trust_env=False) as api:
            body = {"prompt": "Hello", "model": "on-ollama", "params": params}
            answer = api.post("/generate", json=body).json()
        assert (answer["text"], answer["finish_reason"], answer["completion_tokens"]) == ("Answer", "stop", 2)
        assert json.loads(backend[0].bodies[-1])["options"] == {
            "num_predict": 5, "temperature": 0.5, "top_k": 3, "repeat_penalty": 1.1,
        }  # fmt: skip

    def test_asks_the_newest_model_unless_told(self, api: httpx.Client, publish: Publish) -> None:
        publish("newest")
        assert api.post("/generate", json={"prompt": "Hello"}).json()["model"] == "newest"

    def test_errors_of_the_backend(self, api: httpx.Client, publish: Publish) -> None:
        publish("refuses-generate")
        answer = api.post("/generate", json={"prompt": "Hello", "model": "refuses-generate"})
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "exceed_context_size_error"

    def test_half_an_answer_is_503(self, api: httpx.Client, publish: Publish) -> None:
        publish("half-answer")
        answer = api.post("/generate", json={"prompt": "Hello", "model": "half-answer"})
        assert answer.status_code == 503
        assert "stopped in mid-answer" in error_of(answer)["message"]

    def test_an_unknown_parameter(self, api: httpx.Client) -> None:
        error = error_of(api.post("/generate", json={"prompt": "x", "params": {"tempp": 1}}))
        assert error["message"] == "There is no field tempp. Did you mean temp?"
        assert error["param"] == "tempp"


class TestEmbeddings:
    def test_default(self, api: httpx.Client, backend: Backend) -> None:
        answer = api.post("/v1/embeddings", json={"model": "default", "input": ["a", "b"]}).json()
        assert [row["index"] for row in answer["data"]] == [0, 1]

    def test_others_are_unknown(self, api: httpx.Client) -> None:
        answer = api.post("/v1/embeddings", json={"model": "text-embedding-3-small", "input": "a"})
        assert answer.status_code == 404
        assert error_of(answer)["param"] == "model"

    @pytest.mark.parametrize("encoding", ["float", "base64"])
    def test_dimensions_are_not_silently_ignored(self, api: httpx.Client, encoding: str) -> None:
        body = {"model": "default", "input": "a", "encoding_format": encoding}
        answer = api.post("/v1/embeddings", json={**body, "dimensions": 2})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "dimensions"
        assert api.post("/v1/embeddings", json={**body, "dimensions": len(VECTOR)}).status_code == 200

    @pytest.mark.parametrize(
        ("given", "param"),
        [
            ({}, "input"), ({"input": ""}, "input"), ({"input": []}, "input"),
            ({"input": ["a", ""]}, "input"),
            ({"input": ["a", 3]}, "input"), ({"input": [1.5]}, "input"), ({"input": [[]]}, "input"),
            ({"input": {"a": 1}}, "input"), ({"input": [True]}, "input"), ({"input": ["a"] * 2049}, "input"),
            ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
            ({"input": "a", "dimensions": 0}, "dimensions"),
            ({"input": "a", "dimensions": "8"}, "dimensions"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_embedded_is_named_before_it_is_asked(
        self, api: httpx.Client, backend: Backend, given: dict[str, Any], param: str
    ) -> None:
        before = len(backend[0].bodies)
        answer = api.post("/v1/embeddings", json={"model": "default", **given})
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)
        assert len(backend[0].bodies) == before

    def test_ids_of_tokens_are_passed_on(self, api: httpx.Client, backend: Backend) -> None:
        for ids in ([1, 2, 3], [[1, 2], [3]]):
            assert api.post("/v1/embeddings", json={"model": "default", "input": ids}).status_code == 200
            assert json.loads(backend[0].bodies[-1])["input"] == ids


class TestReadBody:
    def test_deep_json_is_refused(self) -> None:
        with pytest.raises(InvalidInput):
            read_body(b'{"model":"a","x":' + b"[" * 100_000 + b"}")

    def test_only_the_outermost_model_is_replaced(self) -> None:
        body = read_body(b'{"a":{"model":"inner"},"model":"m","b":"\\"model\\":\\"x\\""}')
        assert body.with_model("n") == b'{"a":{"model":"inner"},"model":"n","b":"\\"model\\":\\"x\\""}'


def test_importing_the_application_has_no_torch() -> None:
    code = "import api.app, sys; assert 'torch' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)
