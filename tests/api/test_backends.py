"""Models of backends beside the published ones, through the API."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from api.app import create_app
from db.settings import Settings
from serving.local_port import free_port
from tests.api.conftest import Publish, error_of, serving
from tests.api.model_server import ANSWER, ModelServer
from tests.serving.backends.stand_in import EVENTS, WHOLE, StandIn
from tests.waiting import wait_until

HELLO = [{"role": "user", "content": "Hello"}]
Serve = Callable[[str], Any]


@pytest.fixture
def server() -> Iterator[StandIn]:
    server = StandIn().start()
    yield server
    server.stop()


@pytest.fixture
def serve(settings: Settings, tmp_path: Path) -> Serve:
    """The API with a file of backends, and a client of it."""

    @contextmanager
    def run(text: str, **changes: Any) -> Iterator[httpx.Client]:
        path = tmp_path / "backends.toml"
        path.write_text(text)
        app = create_app(settings.model_copy(update={"backends": path, **changes}))
        with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=20) as api:
            yield api

    return run


def there(server: StandIn, more: str = "") -> str:
    return f"[there]\ntype = 'openai'\nurl = '{server.url}'\n{more}\n"


def chat(api: httpx.Client, model: str, **more: Any) -> httpx.Response:
    return api.post("/v1/chat/completions", json={"model": model, "messages": HELLO, **more})


class TestNames:
    def test_a_backends_own_model_by_its_name_there_and_by_a_given_one(
        self, serve: Serve, server: StandIn
    ) -> None:
        with serve(there(server, "models = {given-name = 'dir/other:1b'}")) as api:
            assert chat(api, "there/own").content == WHOLE
            assert chat(api, "given-name").content == WHOLE
            assert [json.loads(body)["model"] for body in server.bodies] == ["own", "dir/other:1b"]
            assert chat(api, "there/streams", stream=True).content == b"".join(EVENTS)
            embedded = api.post("/v1/embeddings", json={"model": "there/own", "input": "x"})
            completed = api.post("/v1/completions", json={"model": "there/own", "prompt": "x"})
            generated = api.post("/generate", json={"model": "given-name", "prompt": "x"}).json()
        assert embedded.status_code == completed.status_code == 200
        assert server.paths[-3:-1] == ["/v1/embeddings", "/v1/completions"]
        assert (generated["text"], generated["model"]) == ("said", "given-name")

    def test_they_are_listed_and_looked_at_with_who_has_them(self, serve: Serve, server: StandIn) -> None:
        with serve(there(server, "models = ['own']")) as api:
            rows = {row["id"]: row for row in api.get("/v1/models").json()["data"]}
            looked = [api.get(f"/v1/models/{name}").json() for name in ("there/dir/other:1b", "own")]
            assert api.get("/v1/models/there/nothing").status_code == 404
            assert "named there/…" in error_of(chat(api, "nobody"))["message"]
            assert api.get("/readyz").json()["parts"]["backend:there"]["ok"]
            refused = api.delete("/v1/models/there/own")
        assert {name for name in rows if rows[name]["owned_by"] == "there"} == {
            "own", "there/own", "there/dir/other:1b",
        }  # fmt: skip
        assert [row["owned_by"] for row in looked] == ["there", "there"]
        assert error_of(refused)["message"].startswith("'there/own' is a backend's own")

    def test_a_published_name_goes_before_a_given_one(
        self, serve: Serve, server: StandIn, publish: Publish
    ) -> None:
        publish("both-have-it")
        with serve(there(server, "models = ['both-have-it']")) as api:
            assert chat(api, "both-have-it").content == ANSWER
            [row] = [row for row in api.get("/v1/models").json()["data"] if row["id"] == "both-have-it"]
        assert row["owned_by"] == "lathe"

    def test_a_dead_backend_breaks_no_list(self, serve: Serve) -> None:
        with serve(f"[dead]\ntype = 'openai'\nurl = 'http://127.0.0.1:{free_port()}'") as api:
            assert "tiny" in [row["id"] for row in api.get("/v1/models").json()["data"]]
            part = api.get("/readyz").json()["parts"]["backend:dead"]
        assert (part["ok"], part["required"]) == (False, False)

    @pytest.mark.parametrize(
        "written", ["{}", "{}:latest", "library/{}", "registry.ollama.ai/library/{}:latest", "UPPER"]
    )
    def test_published_models_are_not_to_be_had_by_their_backends_name(
        self, serve: Serve, server: StandIn, publish: Publish, written: str
    ) -> None:
        served = publish("hidden", backend="ollama")
        name = served.upper() if written == "UPPER" else written.format(served)
        with serve("", ollama_host=server.url) as api:
            assert chat(api, f"ollama/{name}").status_code == 404
            assert chat(api, "ollama/faq-v-0123456789ab").status_code == 404
            assert chat(api, "ollama/qwen3:0.6b").content == WHOLE
        assert len(server.bodies) == 1

    @pytest.mark.parametrize(
        "name", ["ollama/a\\u0000b", "ollama/a\\ud800b", "ollama/", "ollama/" + "x" * 5000]
    )
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
    def test_what_can_be_no_models_name(self, serve: Serve, server: StandIn, path: str, name: str) -> None:
        with serve("", ollama_host=server.url) as api:
            body = f'{{"model": "{name}", "input": "x"}}'
            answer = api.post(path, content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, error_of(answer)["param"]) == (404, "model")

    def test_a_backend_that_the_settings_no_longer_name(self, serve: Serve, publish: Publish) -> None:
        publish("orphan", backend="gone")
        with serve("") as api:
            answer = chat(api, "orphan")
        assert (answer.status_code, error_of(answer)["code"]) == (503, "backend_not_configured")


class TestTrouble:
    def test_a_killed_backend_is_a_503_and_answers_again_by_itself(self, serve: Serve) -> None:
        port = free_port()
        with serve(f"[there]\ntype = 'openai'\nurl = 'http://127.0.0.1:{port}'") as api:
            started = time.monotonic()
            answer = chat(api, "there/own")
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert error_of(answer)["code"] == "model_server_unavailable"
            assert time.monotonic() - started < 10
            server = StandIn().start(port)
            try:
                assert chat(api, "there/own").content == WHOLE
                server.stop()
                assert chat(api, "there/own").status_code == 503
                server.start(port)
                assert chat(api, "there/own").content == WHOLE
            finally:
                server.stop()

    @pytest.mark.parametrize("model", ["hangs", "hangs-after-its-head", "half", "half-that-looks-whole"])
    def test_no_answer_and_half_a_json_are_503(self, serve: Serve, server: StandIn, model: str) -> None:
        with serve(there(server, "timeout = {first_byte = 0.2}")) as api:
            answer = chat(api, f"there/{model}")
        assert answer.status_code == 503
        assert error_of(answer)["type"] == "server_error"

    @pytest.mark.parametrize("model", ["dies", "stalls", "ends-early"])
    def test_the_stock_client_sees_an_error_in_the_stream(
        self, serve: Serve, server: StandIn, model: str
    ) -> None:
        with (
            serve(there(server, "timeout = {between_bytes = 0.1}")) as api,
            OpenAI(base_url=f"{api.base_url}/v1", api_key="x", max_retries=0) as client,
        ):
            said = []
            stream = client.chat.completions.create(
                model=f"there/{model}",
                messages=HELLO,
                stream=True,  # type: ignore[arg-type]
            )
            with pytest.raises(openai.APIError, match="server that runs this model"):
                said += [chunk.choices[0].delta.content for chunk in stream]

    def test_more_than_it_may_have_is_429_with_retry_after(self, serve: Serve, server: StandIn) -> None:
        with serve(there(server, "concurrency = 1\nqueue = 0")) as api:
            with api.stream("POST", "/v1/chat/completions", json={"model": "there/stalls", "stream": True}):
                answer = chat(api, "there/own")
            assert (answer.status_code, error_of(answer)["code"]) == (429, "backend_busy")
            assert error_of(answer)["type"] == "rate_limit_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            # the one that hung up has left its place
            wait_until(lambda: chat(api, "there/own").status_code == 200)

    def test_its_own_429_comes_with_its_retry_after(self, serve: Serve, server: StandIn) -> None:
        with serve(there(server)) as api:
            answer = chat(api, "there/limited")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
        assert error_of(answer)["code"] == "rate_limit_exceeded"


class TestAnother:
    def test_one_of_the_same_files_answers_while_the_first_is_away(
        self, serve: Serve, server: StandIn, publish: Publish
    ) -> None:
        served = publish("doubled")
        text = there(server, "stands_in_for = 'llama_server'")
        with serve(text, chat_server_url=f"http://127.0.0.1:{free_port()}") as api:
            assert chat(api, "doubled").content == WHOLE
        assert json.loads(server.bodies[-1])["model"] == served

    def test_the_first_is_asked_as_long_as_it_answers(
        self, serve: Serve, server: StandIn, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        publish("single")
        with serve(there(server, "stands_in_for = 'llama_server'")) as api:
            assert chat(api, "single").content == ANSWER
        assert server.bodies == []


class TestMemory:
    def test_what_loads_nothing_on_request_says_so(self, serve: Serve, server: StandIn) -> None:
        with serve(there(server)) as api:
            answer = api.post("/v1/models/there/own/load")
        assert answer.status_code == 400
        assert error_of(answer)["message"] == "The backend 'there' cannot load."
