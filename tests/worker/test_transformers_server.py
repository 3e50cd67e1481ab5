"""A real model and a real adapter, served by the process that `lathe up` starts for a backend."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from db.errors import Unavailable
from deploy.local.parts import backend_part
from deploy.local.process import Death, Supervised
from serving.backends.configuration import BackendConfig
from serving.backends.guarding import Guarded
from serving.backends.interface import request_of
from serving.local_port import free_port
from tests.serving.backends.asking import ask, with_backend
from tests.worker.steps.export_fixtures import shared_models

START_SECONDS = 120


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_answers_streams_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    models = shared_models(tmp_path_factory.getbasetemp())
    [question, answer] = [row["content"] for row in models.rows[0]["messages"][-2:]]
    asked = {"messages": [{"role": "user", "content": question}], "max_tokens": 40, "temperature": 0}
    port = free_port()
    process = {
        "model": str(models.base), "adapter_id": str(models.adapter), "port": port,
        "model_kwargs": {"dtype": "float32"},
    }  # fmt: skip
    config = BackendConfig.model_validate(
        {
            "name": "tuned", "type": "transformers", "process": process, "url": f"http://127.0.0.1:{port}"
        }
    )  # fmt: skip
    server = Supervised(backend_part(config), tmp_path)
    server.start()
    try:
        _wait_until_ready(server)

        async def work(there: Guarded) -> list[tuple[int, bytes]]:
            return [
                await ask(there, "tuned", **asked),
                await ask(there, "tuned", **asked, stream=True),
                await ask(there, "other", **asked),
            ]

        whole, stream, other = with_backend(f"http://127.0.0.1:{port}", work)
        assert _said(whole[1]) == answer
        said = [
            json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
            for event in stream[1].decode().strip().split("\n\n")
            if event != "data: [DONE]"
        ]
        assert "".join(said).strip() == answer
        assert other[0] == 400

        _is_killed_amid_an_answer(server, port, asked)
        assert _ended(server).note == "ended by SIGKILL"
        server.restart()
        _wait_until_ready(server)
        [again] = with_backend(f"http://127.0.0.1:{port}", lambda there: _once(there, asked))
        assert _said(again[1]) == answer
    finally:
        if server.alive:
            server.kill()
            _ended(server)


def _is_killed_amid_an_answer(server: Supervised, port: int, asked: dict[str, Any]) -> None:
    """The stream that it was at ends with an error, and who asks then is told so at once."""
    long = {"generation_config": json.dumps({"min_new_tokens": 1000}), "max_tokens": 1000, "stream": True}

    async def work(there: Guarded) -> bytes:
        answer = await there.ask("chat", request_of("tuned", {**asked, **long}))
        heard = [await anext(answer.chunks)]
        assert server.pid is not None
        os.killpg(server.pid, signal.SIGKILL)
        heard += [chunk async for chunk in answer.chunks]
        await answer.close()
        with pytest.raises(Unavailable, match="does not answer") as refused:
            await ask(there, "tuned", **asked)
        assert refused.value.code == "model_server_unavailable"
        return heard[-1]

    last = with_backend(f"http://127.0.0.1:{port}", work)
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["type"] == "server_error"
    assert "stopped in mid-answer" in error["message"]


def _ended(server: Supervised) -> Death:
    while not server.has_ended():
        time.sleep(0.05)
    return server.collect()


async def _once(there: Guarded, asked: dict[str, Any]) -> list[tuple[int, bytes]]:
    return [await ask(there, "tuned", **asked)]


def _said(answer: bytes) -> str:
    said: str = json.loads(answer)["choices"][0]["message"]["content"]
    return said.strip()


def _wait_until_ready(server: Supervised) -> None:
    deadline = time.monotonic() + START_SECONDS
    while server.state != "ready":
        assert not server.has_ended(), server.log.read_text()[-3000:]
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        server.check()
        time.sleep(0.1)
