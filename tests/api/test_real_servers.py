"""Real llama-servers behind the API: the embedding model, and a router that forgets a deleted model."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from api.app import create_app
from db.settings import Settings
from retrieval.search import Query
from retrieval.variants import like_the_question
from serving import llama_cpp
from serving.embedding_model import ensure_embedding_model
from serving.local_port import free_port
from tests.api.conftest import Publish, error_of, serving
from tests.serving.llama_process import LlamaProcess


@pytest.fixture(scope="module")
def embedding_file() -> Path:
    settings = Settings()
    return ensure_embedding_model(llama_cpp.require_tools(settings), settings)


@pytest.fixture(scope="module")
def embedding_url(
    settings: Settings, embedding_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    changes = {"embedding_server_url": None, "embedding_port": free_port()}
    told = settings.model_copy(update=changes)
    model = tmp_path_factory.mktemp("embedding") / "model.gguf"
    model.symlink_to(embedding_file)
    argv = llama_cpp.embedding_server_argv(llama_cpp.require_tools(told), told, model)
    key = settings.embedding_server_key.get_secret_value()
    process = LlamaProcess(model, argv=argv, api_key=key, port=told.embedding_port)
    with serving(create_app(told)) as url:
        yield url
    process.stop()


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


class TestEmbeddings:
    def test_the_stock_client_gets_the_same_vectors_in_both_encodings(self, embedding_url: str) -> None:
        with OpenAI(base_url=f"{embedding_url}/v1", api_key="unused") as client:
            [packed] = client.embeddings.create(model="default", input="a cat").data
            texts = ["a cat", "a kitten", "tax law"]
            cat, kitten, law = (
                row.embedding
                for row in client.embeddings.create(
                    model="default", input=texts, encoding_format="float"
                ).data
            )
        assert len(cat) == 384
        # base64 holds float32; the numbers of JSON are the same ones, written in decimals.
        assert packed.embedding == pytest.approx(cat, abs=1e-6)
        assert dot(cat, kitten) > dot(cat, law)

    def test_they_tell_other_words_from_other_questions(self, embedding_url: str) -> None:
        asked = "How long is the leave?"
        other_words = ["duration of vacation", "number of days off work", "annual leave entitlement"]
        nonsense = ["Q4_K_K_K_K_M.", "red wine stains on a carpet", "lora_r lora_r 16 16"]
        with OpenAI(base_url=f"{embedding_url}/v1", api_key="unused") as client:
            rows = client.embeddings.create(model="default", input=[asked, *other_words, *nonsense]).data
        question, *variants = (
            Query(text, row.embedding)
            for text, row in zip([asked, *other_words, *nonsense], rows, strict=True)
        )
        kept, dropped = like_the_question([question], variants)
        assert [query.text for query in kept] == other_words
        assert len(dropped) == len(nonsense)

    def test_ids_of_tokens_stand_for_their_text(self, embedding_url: str) -> None:
        with OpenAI(base_url=f"{embedding_url}/v1", api_key="unused") as client:
            text, ids, lists = (
                client.embeddings.create(model="default", input=given, dimensions=384)
                for given in ("a cat", [101, 1037, 4937, 102], [[101, 1037, 4937, 102]])
            )
            with pytest.raises(openai.BadRequestError, match="have 384") as caught:
                client.embeddings.create(model="default", input="a cat", dimensions=64)
            with pytest.raises(openai.BadRequestError, match="invalid tokens"):
                client.embeddings.create(model="default", input=[99_999_999])
        assert caught.value.param == "dimensions"
        assert text.data[0].embedding == ids.data[0].embedding == lists.data[0].embedding
        assert (text.usage.prompt_tokens, text.model) == (4, "default")

    def test_its_errors_come_in_our_shape(self, embedding_url: str) -> None:
        body = {"model": "default", "input": "word " * 2000}
        answer = httpx.post(f"{embedding_url}/v1/embeddings", json=body, trust_env=False)
        assert answer.status_code == 400
        assert "too large to process" in error_of(answer)["message"]


def test_a_deleted_model_leaves_the_router(
    settings: Settings, publish: Publish, embedding_file: Path, tmp_path: Path
) -> None:
    process = LlamaProcess(tmp_path)
    told = {"data_dir": tmp_path, "chat_server_url": process.url}
    try:
        name = publish("routed")
        shutil.copy(embedding_file, tmp_path / "storage" / "served" / f"{name}.gguf")
        assert name in process.server.model_names(reload=True)
        with serving(create_app(settings.model_copy(update=told))) as url:
            assert httpx.delete(f"{url}/v1/models/routed", trust_env=False).status_code == 200
        assert process.server.model_names() == []
    finally:
        process.stop()
