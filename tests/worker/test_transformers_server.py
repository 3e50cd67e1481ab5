"""A real model and a real adapter, served by the process that `lathe up` starts for a backend."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from serving.backends.configuration import Process
from serving.backends.guarding import Guarded
from serving.local_port import free_port
from tests.serving.backends.asking import ask, with_backend
from tests.worker.steps.export_fixtures import shared_models

START_SECONDS = 120


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_an_adapter_answers_and_streams(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    models = shared_models(tmp_path_factory.getbasetemp())
    [question, answer] = [row["content"] for row in models.rows[0]["messages"][-2:]]
    port = free_port()
    process = Process(
        model=str(models.base), adapter_id=str(models.adapter), port=port, model_kwargs={"dtype": "float32"}
    )
    argv = [sys.executable, "-m", "worker.transformers_server", "tuned", process.model_dump_json()]
    log = tmp_path / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
        _wait_until_healthy(server, port, log)

        async def work(there: Guarded) -> list[tuple[int, bytes]]:
            asked = {
                "messages": [{"role": "user", "content": question}], "max_tokens": 40, "temperature": 0,
            }  # fmt: skip
            return [
                await ask(there, "tuned", **asked),
                await ask(there, "tuned", **asked, stream=True),
                await ask(there, "other", **asked),
            ]

        whole, stream, other = with_backend(f"http://127.0.0.1:{port}", work)
    finally:
        server.terminate()
        server.wait(20)
    assert json.loads(whole[1])["choices"][0]["message"]["content"].strip() == answer
    said = [
        json.loads(event.removeprefix("data: "))["choices"][0]["delta"].get("content") or ""
        for event in stream[1].decode().strip().split("\n\n")
        if event != "data: [DONE]"
    ]
    assert "".join(said).strip() == answer
    assert other[0] == 400


def _wait_until_healthy(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert server.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
