"""Who embeds documents, the server or the step's own process, both for real."""

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from db.settings import Settings
from db.states import Queue
from serving.embeddings import EmbeddingServer, Vectors
from tests.embedding_server import EmbeddingStandIn
from tests.serving.llama_process import LlamaProcess, embedding_process
from tests.worker.steps.export_fixtures import step_of
from worker.step import DocumentInput, Step
from worker.step_input import step_settings
from worker.steps import embed, extract
from worker.steps.embedding_choice import (
    CHECKED_CHUNKS,
    LOCAL_FROM_CHUNKS,
    MEASURED_CHUNKS,
    PRELOADED_FROM_CHUNKS,
    PRELOADED_MEASURED_CHUNKS,
    EmbeddingChoice,
)
from worker.steps.embedding_trial import KEPT_DAYS
from worker.steps.large_ingest import queue_of_embed
from worker.steps.local_embedder import LocalEmbedder

LARGE = 10_000
Said = list[dict[str, Any]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaProcess]:
    process = embedding_process(tmp_path_factory.mktemp("embeddings"))
    yield process
    process.stop()


@pytest.fixture
def other() -> Iterator[EmbeddingStandIn]:
    """A server of another model."""
    server = EmbeddingStandIn()
    yield server
    server.stop()


def settings_for(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(**{"cache_dir": tmp_path / "cache", "threads": 1, **changes})


def embed_step(tmp_path: Path, settings: Settings, **changes: Any) -> tuple[Step, Said]:
    fields = {"kind": "ingest", "step": "embed", **changes}
    return step_of(tmp_path / fields["step"], step_settings(settings), **fields)


def ingest(tmp_path: Path, settings: Settings, *, language: bool = True) -> tuple[dict[str, Any], Said]:
    """Run both steps over three documents; without `language`, as an older Lathe had extracted them."""
    documents = []
    for number in range(3):
        path = tmp_path / f"{number}.txt"
        path.write_text(" ".join(f"Squirrel {number} hoards {n} nuts." for n in range(60)))
        owner = ("default", "vs-1", path, path.name)
        documents.append(DocumentInput(f"doc-{number}", *owner, chunk_tokens=60, chunk_overlap_tokens=0))
    reading, _ = embed_step(tmp_path, settings, step="extract", documents=documents)
    extracted = extract.run(reading)
    if not language:
        for row in extracted["documents"]:
            del row["language"]
    earlier = {"step_folders": {"extract": reading.input.folder}, "results": {"extract": extracted}}
    params = {"collection": "vs-1"}
    step, said = embed_step(tmp_path, settings, documents=documents, params=params, **earlier)
    return embed.run(step), said


def messages(said: Said, level: str = "info") -> list[str]:
    return [each["message"] for each in said if each["type"] == "event" and each["level"] == level]


def cosines(one: Vectors, other: Vectors) -> list[float]:
    pairs = [(array("f", a), array("f", b)) for a, b in zip(one, other, strict=True)]
    return [sum(x * y for x, y in zip(a, b, strict=True)) for a, b in pairs]


class TestIngest:
    def test_is_embedded_by_the_step_itself(self, tmp_path: Path, real: LlamaProcess) -> None:
        settings = settings_for(tmp_path, embedder="local", embedding_port=real.port)
        result, said = ingest(tmp_path, settings)
        assert (result["documents"], result["failed"]) == (3, 0)
        [message] = messages(said)
        assert message.startswith("This process embeds, by the CPU in ")
        with EmbeddingServer(real.url) as server:
            model = server.model()
        ready = [each for each in said if each["type"] == "document"]
        assert {(each["model"], each["revision"], each["dimensions"]) for each in ready} == {
            (model.name, model.revision, 384)
        }
        assert sum(each["chunks"] for each in ready) == result["chunks"] > CHECKED_CHUNKS

    def test_is_embedded_as_by_the_server_in_any_script(self, tmp_path: Path, real: LlamaProcess) -> None:
        texts = ["한국어 문장입니다.", "नमस्ते दुनिया", "東京は日本の首都", "Grüße [SEP] ﬁn", "x" * 150, "ꩺ🙂"]
        with EmbeddingServer(real.url) as server:
            tokens = [len(each) for each in server.tokenize(texts)]
            local = LocalEmbedder(None, threads=1, server=server)
            assert min(cosines(local.embed(texts, tokens), server.embed(texts, tokens))) >= 0.999

    def test_a_small_one_is_left_to_the_server(self, tmp_path: Path, real: LlamaProcess) -> None:
        settings = settings_for(tmp_path, embedding_port=real.port)
        assert step_settings(settings).embedder == "auto"
        result, said = ingest(tmp_path, settings, language=False)
        assert result["documents"] == 3
        assert messages(said) == messages(said, "warn") == []
        assert not (tmp_path / "cache").exists()
        ready = [each for each in said if each["type"] == "document"]
        assert {(each["language"], each["configuration"]) for each in ready} == {("simple", "simple")}

    @pytest.mark.parametrize(
        ("tokenizes", "said_of_it"),
        [
            (True, "its vectors are not those of this process (cosine 0.0000, at least 0.999 is needed)"),
            (False, "This process cannot embed: The embedding server answers 404"),
        ],
    )
    def test_another_model_s_server_embeds_itself_and_it_is_said(
        self, tmp_path: Path, other: EmbeddingStandIn, tokenizes: bool, said_of_it: str
    ) -> None:
        other.tokenizes = tokenizes
        step, said = embed_step(
            tmp_path, settings_for(tmp_path, embedder="local", embedding_server_url=other.url)
        )
        with EmbeddingServer(other.url) as server:
            choice = EmbeddingChoice(step, server, chunks=2)
            for texts in (["nuts", "squirrels"], ["winter"]):
                assert choice.embed(texts, [1] * len(texts)) == server.embed(texts, [1] * len(texts))
        [warning] = messages(said, "warn")
        assert said_of_it in warning

    def test_many_chunks_wait_for_a_gpu_where_that_is_wanted(self, tmp_path: Path) -> None:
        wanted = step_settings(settings_for(tmp_path, embed_on_gpu=True))
        assert queue_of_embed(wanted, chunks=LARGE) == Queue.GPU
        assert queue_of_embed(wanted, chunks=10) == Queue.BULK
        for changes in ({"embed_on_gpu": False}, {"embedder": "server"}):
            unwanted = step_settings(settings_for(tmp_path, **{"embed_on_gpu": True, **changes}))
            assert queue_of_embed(unwanted, chunks=LARGE) == Queue.BULK

    def test_a_server_of_the_user_s_own_is_not_tried(self, tmp_path: Path) -> None:
        assert (
            step_settings(settings_for(tmp_path, embedding_server_url="http://10.0.0.1")).embedder == "server"
        )


class AskedServer(EmbeddingServer):
    """The server, and how many texts it was asked for."""

    asked = 0

    def embed(self, texts: Sequence[str], *rest: Any) -> Vectors:
        self.asked += len(texts)
        return super().embed(texts, *rest)


class Measuring:
    def embed(self, tmp_path: Path, real: LlamaProcess, number: int, *, of: int = LARGE) -> tuple[int, Said]:
        """Embed the first texts of so many; gives for how many the server was asked."""
        words = ["nuts", "for", "squirrels", "in", "winter", "days", "so"]
        tokens = [3 + n % 5 for n in range(number)]
        texts = [" ".join(words[:each]) for each in tokens]
        step, said = embed_step(tmp_path, settings_for(tmp_path, embedding_port=real.port))
        done: list[int] = []
        with AskedServer(real.url) as server:
            vectors = EmbeddingChoice(step, server, chunks=of).embed(texts, tokens, done.append)
            asked = server.asked
            assert min(cosines(vectors, server.embed(texts, tokens))) >= 0.999
        assert (len(vectors), done[-1]) == (number, number)
        return asked, said


class TestLargeIngest(Measuring):
    def test_what_a_busy_machine_measures_is_not_kept(
        self, tmp_path: Path, real: LlamaProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
        _, said = self.embed(tmp_path, real, MEASURED_CHUNKS)
        [again, outcome] = messages(said)
        assert "is measured again by the next ingest" in again
        assert "embeds" in outcome
        assert not (tmp_path / "cache").exists()

    def test_both_are_measured_once_and_what_came_of_it_is_kept(
        self, tmp_path: Path, real: LlamaProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 1000.0, 1000.0))
        number = MEASURED_CHUNKS + 9
        asked, said = self.embed(tmp_path, real, number)
        [event] = [each for each in said if each["type"] == "event"]
        assert asked == (MEASURED_CHUNKS if event["message"].startswith("This process embeds") else number)
        assert min(event["data"]["server_rate"], event["data"]["local_rate"]) > 0
        [path] = (tmp_path / "cache" / "embeddings").iterdir()
        kept = json.loads(path.read_text())
        assert kept["trial"] == event["data"]

        def kept_since(days: int, local_rate: float) -> str:
            """Keep a trial that was made so many days ago."""
            day = (datetime.now(UTC) - timedelta(days=days)).date().isoformat()
            trial = {"server_rate": 20.0, "local_rate": local_rate, "measured_on": day}
            path.write_text(json.dumps(kept | {"trial": kept["trial"] | trial}))
            return day

        for local_rate, expected in ((23.0, number), (25.0, CHECKED_CHUNKS)):
            day = kept_since(KEPT_DAYS - 1, local_rate)
            asked, said = self.embed(tmp_path, real, number)
            [message] = messages(said)
            assert f"20.0 chunks a second by the server, {local_rate} in this process" in message
            assert f"measured {day}" in message
            assert asked == expected
        kept_since(KEPT_DAYS, 23.0)
        self.embed(tmp_path, real, number)
        assert json.loads(path.read_text())["trial"]["server_rate"] != 20.0

    def test_too_few_texts_decide_nothing(self, tmp_path: Path, real: LlamaProcess) -> None:
        assert self.embed(tmp_path, real, MEASURED_CHUNKS - 1) == (MEASURED_CHUNKS - 1, [])


class TestSmallIngest(Measuring):
    """With the model loaded before, as in a step that is a copy of a process which has it."""

    @pytest.fixture(autouse=True)
    def preloaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalEmbedder, "preloaded", None)
        monkeypatch.setattr(os, "getloadavg", lambda: (1.0, 1.0, 1.0))
        LocalEmbedder.preload()

    def test_is_measured_and_then_embedded_by_the_step_itself(
        self, tmp_path: Path, real: LlamaProcess
    ) -> None:
        few = PRELOADED_MEASURED_CHUNKS
        asked, said = self.embed(tmp_path, real, few, of=few)
        assert asked == few
        [event] = [each for each in said if each["type"] == "event"]
        [path] = (tmp_path / "cache" / "embeddings").iterdir()
        kept = json.loads(path.read_text())
        assert kept["trial"] == event["data"]
        path.write_text(json.dumps(kept | {"trial": kept["trial"] | {"server_rate": 1.0, "local_rate": 9.0}}))
        asked, said = self.embed(tmp_path, real, PRELOADED_FROM_CHUNKS, of=PRELOADED_FROM_CHUNKS)
        assert asked == CHECKED_CHUNKS
        assert messages(said)[0].startswith("This process embeds, by the CPU in ")

    def test_a_very_small_one_is_left_to_the_server(self, tmp_path: Path, real: LlamaProcess) -> None:
        few = PRELOADED_FROM_CHUNKS - 1
        assert self.embed(tmp_path, real, few, of=few) == (few, [])

    def test_one_that_holds_a_gpu_has_to_load_the_model(self, tmp_path: Path, real: LlamaProcess) -> None:
        step, _ = embed_step(tmp_path, settings_for(tmp_path, embedding_port=real.port), device="a GPU")
        with AskedServer(real.url) as server:
            EmbeddingChoice(step, server, chunks=LOCAL_FROM_CHUNKS - 1).embed(["nuts"] * 20, [1] * 20)
            assert server.asked == 20
