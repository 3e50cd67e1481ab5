"""Models that are made from others: what they add to a request, copies, and all of them deleted at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.app import create_app
from db.settings import Settings
from tests.api.conftest import Publish, error_of
from tests.api.model_server import ModelServer
from tests.api.serving import serving
from tests.serving.fake_ollama import FakeOllama, Model

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(autouse=True)
def nothing_created(api: httpx.Client) -> Iterator[None]:
    yield
    assert api.delete("/v1/models", params={"created": "true", "confirm": "delete"}).status_code == 200


def create(api: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = api.post("/v1/models", json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def asked(backend: tuple[ModelServer, str]) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(backend[0].bodies[-1])
    return body


class TestOnLlamaServer:
    def test_a_request_gets_what_was_given_and_its_own_say_wins(
        self, api: httpx.Client, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        served = publish("ship")
        shown = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr"}]
        made = create(
            api, **{"name": "pirate", "from": "ship"}, system="Be a pirate.", messages=shown,
            parameters={"temperature": 0.2, "num_predict": 9, "stop": ["END"], "top_k": 5},
        )  # fmt: skip
        assert made["versions"][0]["base_model"] == "ship@1"
        assert made["versions"][0]["prompting"]["system"] == "Be a pirate."
        said = {"model": "pirate", "messages": HELLO, "temperature": 0.9, "max_completion_tokens": 3}
        assert api.post("/v1/chat/completions", json=said).status_code == 200
        assert asked(backend) == {
            "model": served, "temperature": 0.9, "max_completion_tokens": 3, "stop": ["END"], "top_k": 5,
            "messages": [{"role": "system", "content": "Be a pirate."}, *shown, *HELLO],
        }  # fmt: skip

    def test_a_system_prompt_of_the_caller_takes_the_place_of_ours(
        self, api: httpx.Client, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        publish("crew")
        create(api, **{"name": "mate", "from": "crew"}, system="Be a mate.")
        own = [{"role": "system", "content": "Be brief."}, *HELLO]
        api.post("/v1/chat/completions", json={"model": "mate", "messages": own})
        assert asked(backend)["messages"] == own

    def test_generate_and_completions_get_it_too(
        self, api: httpx.Client, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        publish("deck")
        create(api, **{"name": "hand", "from": "deck"}, system="Be a hand.", parameters={"num_predict": 7})
        assert api.post("/generate", json={"model": "hand", "prompt": "Hello"}).status_code == 200
        assert asked(backend)["messages"] == [{"role": "system", "content": "Be a hand."}, *HELLO]
        api.post("/v1/completions", json={"model": "hand", "prompt": "Once"})
        assert (asked(backend)["prompt"], asked(backend)["max_tokens"]) == ("Once", 7)

    def test_one_made_of_another_adds_to_it(
        self, api: httpx.Client, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        publish("keel")
        create(api, **{"name": "first", "from": "keel"}, system="One.", parameters={"seed": 1, "top_k": 2})
        create(api, **{"name": "second", "from": "first"}, parameters={"seed": 3})
        api.post("/v1/chat/completions", json={"model": "second", "messages": HELLO})
        assert asked(backend)["messages"][0]["content"] == "One."
        assert (asked(backend)["seed"], asked(backend)["top_k"]) == (3, 2)

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"from": "nobody"}, "from"),
            ({"parameters": {"temperature": "hot"}}, "parameters.temperature"),
            ({"parameters": {"stop": "END"}}, "parameters.stop"),
            ({"parameters": {"mirostat": 1}}, "parameters.mirostat"),
            ({"parameters": {"num_ctx": 4096}}, "parameters.num_ctx"),
            ({"template": "{{ .Prompt }}"}, "template"),
            ({"name": "tiny"}, "name"),
            ({"name": "default"}, "name"),
            ({"name": "No/Name"}, "name"),
        ],
    )
    def test_names_the_field_that_is_wrong(
        self, api: httpx.Client, publish: Publish, body: dict[str, Any], param: str
    ) -> None:
        publish("mast")
        answer = api.post("/v1/models", json={"name": "wrong", "from": "mast", **body})
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["param"] == param


class TestCopyAndDelete:
    def test_a_copy_outlives_what_it_was_copied_from(
        self, api: httpx.Client, publish: Publish, settings: Settings
    ) -> None:
        served = publish("early", backend_name="early-v-0123")
        answer = api.post("/v1/models/early/copy", json={"name": "late"})
        assert answer.status_code == 201, answer.text
        api.delete("/v1/models/early")
        assert (settings.served_models_dir / f"{served}.gguf").exists()
        assert api.post("/v1/chat/completions", json={"model": "late", "messages": HELLO}).status_code == 200
        api.delete("/v1/models/late")
        assert not (settings.served_models_dir / f"{served}.gguf").exists()

    def test_all_that_were_created_go_and_no_others(self, api: httpx.Client, publish: Publish) -> None:
        publish("stays")
        create(api, **{"name": "goes", "from": "stays"})
        create(api, **{"name": "stays", "from": "stays"}, system="Over.")
        assert api.delete("/v1/models").status_code == 400
        assert api.delete("/v1/models", params={"created": "true"}).status_code == 400
        answer = api.delete("/v1/models", params={"created": "true", "confirm": "delete"})
        assert sorted(row["id"] for row in answer.json()["data"]) == ["goes", "stays@2"]
        assert api.get("/v1/models/stays").json()["version"] == 1


class TestOnOllama:
    def test_is_created_there(self, settings: Settings, tmp_path: Path, publish: Publish) -> None:
        fake = FakeOllama(tmp_path).start()
        try:
            served = publish("sail", backend="ollama", backend_name="sail-v-0123")
            fake.models[served] = Model(tmp_path / "none", "{{ .Prompt }}", None, {"num_ctx": 512})
            with_ollama = settings.model_copy(update={"ollama_host": fake.url})
            with serving(create_app(with_ollama)) as url, httpx.Client(base_url=url, timeout=20) as api:
                given = {
                    "system": "Be.",
                    "parameters": {"num_ctx": 64, "stop": ["END"]},
                    "template": "{{ .System }}",
                }
                create(api, **{"name": "flag", "from": "sail"}, **given)
                [name] = set(fake.models) - {served}
                assert name.startswith("flag-v-")
                assert fake.models[name].system == "Be."
                assert fake.models[name].parameters == {"num_ctx": 64, "stop": ["END"]}
                assert fake.models[name].template == "{{ .System }}"
                api.delete("/v1/models/flag")
                assert set(fake.models) == {served}
        finally:
            fake.stop()
