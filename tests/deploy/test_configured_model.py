"""`lathe up` with a lathe.yaml, on real servers: its model comes from a hub and answers, and comes once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.serving.random_gguf import write_random_gguf
from tests.worker.steps.fake_hub import FakeHub

if TYPE_CHECKING:
    from tests.deploy.conftest import Installation

pytestmark = pytest.mark.slow
FILE = """
models_dir: {folder}
model_family: vicuna
model_name: some-7b
setup_params: {{repo_id: org/some-7b-GGUF, filename: some-7b-Q4_K_M.gguf}}
model_params: {{ctx_size: 256, seed: 3, n_parts: -1}}
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    path = tmp_path / "bare.gguf"
    write_random_gguf(path, template=None)
    server = FakeHub({"org/some-7b-GGUF": {"some-7b-Q4_K_M.gguf": path.read_bytes()}}).start()
    yield server
    server.stop()


@contextmanager
def up(installation: "Installation", until: str) -> Iterator[tuple[list[str], httpx.Client]]:
    """A stack that is up, what it printed as far as the line with `until`, and a client of it."""
    process = installation.up()
    watchdog = threading.Timer(150, process.kill)
    watchdog.start()
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.strip())
            if until in line:
                break
        assert until in lines[-1], "\n".join(lines)
        url = f"http://127.0.0.1:{installation.ports['LATHE_API_PORT']}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as api:
            yield lines, api
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
        watchdog.cancel()


def test_is_fetched_at_the_first_start_and_answers(
    installation: "Installation", hub: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "lathe.yaml").write_text(FILE.format(folder=tmp_path / "models"))
    installation.environment |= {"LATHE_CONFIG": str(tmp_path / "lathe.yaml"), "LATHE_HUB_URL": hub.url}
    body = {"prompt": "Who?", "params": {"n_predict": 8}}
    with up(installation, "model some-7b: answers") as (lines, api):
        assert any("model some-7b: fetched from org/some-7b-GGUF by job job-" in line for line in lines)
        said = api.post("/generate", json=body).json()
        assert isinstance(said, str)
        assert api.post("/generate", json=body).json() == said  # by the seed of the file
        assert api.post("/agenerate", json=body).text.startswith("data: ")
        assert len(api.post("/embeddings", json={"text": "Who?"}).json()) == 384
        [job] = api.get("/v1/jobs").json()["data"]
        events = api.get(f"/v1/jobs/{job['id']}/events").json()["data"]
    assert any("it gets that of the prompt format 'vicuna'" in row["message"] for row in events)
    assert (tmp_path / "models" / "models--org--some-7b-GGUF").is_dir()
    hub.requests.clear()
    with up(installation, "Stop") as (_, api):
        assert api.post("/generate", json=body).json() == said
        assert [row["id"] for row in api.get("/v1/jobs").json()["data"]] == [job["id"]]
    assert hub.requests == []
