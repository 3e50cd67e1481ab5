"""A real llama-server in router mode, as a backend."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest

from serving.backends.guarding import Guarded
from serving.backends.openai_server import LlamaServer
from tests.serving.backends.asking import ask, with_backend
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import write_random_gguf

SAID = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaProcess]:
    folder = tmp_path_factory.mktemp("router")
    (folder / "storage/served").mkdir(parents=True)
    write_random_gguf(folder / "storage/served/m.gguf")
    process = LlamaProcess(folder)
    yield process
    process.stop()


def test_answers_loads_unloads_and_lets_an_idle_model_go(router: LlamaProcess) -> None:
    async def work(there: Guarded) -> None:
        assert await there.health() is None
        assert await there.backend.models() == ["m"]
        status, content = await ask(there, "m", **SAID)
        assert status == 200
        assert json.loads(content)["usage"]["completion_tokens"] == 4
        _, stream = await ask(there, "m", **SAID, stream=True)
        assert stream.endswith(b"data: [DONE]\n\n")
        assert (await there.gauge("m")).window > 0
        await there.load("m")  # which it is
        await there.unload("m")
        await _until_unloaded(router)
        await there.unload("m")  # which it is no more
        await ask(there, "m", **SAID)

    with_backend(router.url, work, kind=LlamaServer, type="llama_server")
    assert router.server.loaded_models() == ["m"]

    async def idle(there: Guarded) -> None:
        await ask(there, "m", **SAID)
        await _until_unloaded(router)

    with_backend(router.url, idle, kind=LlamaServer, type="llama_server", keep_alive=0.1)


async def _until_unloaded(router: LlamaProcess) -> None:
    deadline = time.monotonic() + 20
    while await asyncio.to_thread(router.server.loaded_models):
        assert time.monotonic() < deadline, "the model stays"
        await asyncio.sleep(0.05)
