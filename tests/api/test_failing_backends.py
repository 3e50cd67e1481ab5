"""Each kind of backend, when it dies, hangs, or says half: what a caller sees of it, by the stock client."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from api.app import create_app
from db.settings import Settings
from serving.backends.interface import Answer, Backend, Request, answer_with
from tests.api.serving import serving
from tests.serving.backends.stand_in import StandIn

HELLO: Any = [{"role": "user", "content": "Hello"}]
ENTRIES = {
    "openai": "type = 'openai'",
    "llama": "type = 'llama_server'",
    "ollama": "type = 'ollama'",
    "vllm": "type = 'vllm_generate'\nmodels = ['vllm/m']",
    "tuned": "type = 'transformers'\nprocess = {model = 'somewhere'}",
    "own": "type = 'tests.api.test_failing_backends:Own'\nmodels = ['own/m']",
}
MODELS = {name: "tuned" if name == "tuned" else f"{name}/m" for name in ENTRIES}
# Ollama's own route is taken for what only it heeds.
ASKED: dict[str, dict[str, Any]] = {**{name: {} for name in ENTRIES}, "ollama's own": {"top_k": 1}}
TIMES = "timeout = {first_byte = 0.5, between_bytes = 0.2}\nretries = 0\n"


class Own(Backend):
    """An operator's class that asks a server with words of its own."""

    async def chat(self, request: Request) -> Answer:
        return await answer_with(request, self._pieces(request))

    async def _pieces(self, request: Request) -> AsyncIterator[str]:
        asked = {"model": request.model}
        async with self.client.stream("POST", f"{self.config.url}/own", json=asked) as response:
            async for line in response.aiter_lines():
                yield json.loads(line)


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    server = StandIn().start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(settings: Settings, server: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Of an API with a backend of each kind, all of them the same server."""
    path = tmp_path_factory.mktemp("kinds") / "backends.toml"
    entries = (f"[{name}]\nurl = '{server.url}'\n{TIMES}{entry}\n" for name, entry in ENTRIES.items())
    path.write_text("\n".join(entries))
    app = create_app(settings.model_copy(update={"backends": path}))
    with serving(app) as url, OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        yield client


def ask(client: OpenAI, kind: str, *, stream: bool) -> Any:
    model = MODELS[kind.partition("'")[0]]
    return client.chat.completions.create(
        model=model, messages=HELLO, stream=stream, extra_body=ASKED[kind] or None
    )


# These end their streams by hanging up, so one that hangs up early looks whole.
ENDLESS = ("vllm", "own")
AMID = [
    (kind, failure)
    for kind in ASKED
    for failure in ("dies", "stalls", "ends-early")
    if failure != "ends-early" or kind not in ENDLESS
]


@pytest.mark.parametrize(("kind", "failure"), AMID)
def test_what_breaks_amid_a_stream_ends_it_with_an_error(
    client: OpenAI, server: StandIn, kind: str, failure: str
) -> None:
    server.always = failure
    said: list[str | None] = []
    stream = ask(client, kind, stream=True)
    with pytest.raises(openai.APIError, match="server that runs this model") as caught:
        said.extend(choice.delta.content for chunk in stream for choice in chunk.choices)
    assert "".join(text or "" for text in said) in ("a", "aé")
    assert caught.value.type == "server_error"
    assert caught.value.code


@pytest.mark.parametrize("failure", ["drops", "hangs", "half", "half-that-looks-whole", "restarting"])
@pytest.mark.parametrize("kind", ASKED)
def test_what_breaks_before_is_a_503_in_time(
    client: OpenAI, server: StandIn, kind: str, failure: str
) -> None:
    server.always = failure
    begun = time.monotonic()
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, kind, stream=False)
    assert caught.value.status_code == 503
    assert caught.value.response.headers["retry-after"]
    assert caught.value.type == "server_error"
    assert time.monotonic() - begun < 20
