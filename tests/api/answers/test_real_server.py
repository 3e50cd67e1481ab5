"""Answers from documents by a real llama-server, whose own count of the prompt tells."""

import json
from collections.abc import Iterator

import httpx
import pytest

from api.app import create_app
from db.settings import Settings
from tests.api.answers.conftest import QUESTION, Desk
from tests.api.conftest import serving
from tests.embedding_server import EmbeddingStandIn
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import write_random_gguf

WINDOW = 2048


@pytest.fixture(scope="module")
def url(
    settings: Settings, embeddings: EmbeddingStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("router")
    told = settings.model_copy(update={"data_dir": folder, "embedding_server_url": embeddings.url})
    told.served_models_dir.mkdir(parents=True)
    write_random_gguf(told.served_models_dir / "really.gguf", context=WINDOW)
    process = LlamaProcess(folder)
    with serving(create_app(told.model_copy(update={"chat_server_url": process.url}))) as address:
        yield address
    process.stop()


def test_the_prompt_fits_and_the_answer_comes_with_its_sources(url: str, desk: Desk) -> None:
    desk.publish("really", backend_name="really")
    texts = {
        f"{n}.txt": " ".join(f"In {n}{m} there were days of holidays." for m in range(60)) for n in range(4)
    }
    desk.fill("real", texts)
    body = {
        "model": "really",
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "collections": ["real"],
        "retrieval": {"max_passages": 50},
    }
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as api:
        answer = api.post("/v1/chat/completions", json=body).json()
        # Its tokens are mostly single bytes, so that the room is filled to within a passage.
        assert WINDOW - 400 < answer["usage"]["prompt_tokens"] <= WINDOW - 16
        assert 0 < answer["retrieval"]["given"] < answer["retrieval"]["found"]
        events = api.post("/v1/chat/completions", json={**body, "stream": True}).text.strip().split("\n\n")
    assert json.loads(events[0].removeprefix("data: "))["citations"] == answer["citations"]
    assert events[-1] == "data: [DONE]"
