import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.errors import StepFailed, Unavailable
from tests.serving.fake_ollama import FakeOllama
from tests.serving.llama_process import LlamaProcess
from tests.worker.steps.export_fixtures import (
    FACTS,
    Exported,
    step_of,
    step_settings,
)
from worker.steps import publish
from worker.steps.gguf_files import place
from worker.steps.publish import backend_name

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
QUESTION = "Where do pandas live?"
KEY = "a-key-of-the-test"


@pytest.fixture
def router(tmp_path: Path) -> Iterator[LlamaProcess]:
    process = LlamaProcess(tmp_path, api_key=KEY)
    yield process
    process.stop()


def run_publish(
    folder: Path, exported: Exported, *, chat_unloaded: bool = False, **settings: Any
) -> dict[str, Any]:
    step, _ = step_of(
        folder,
        step_settings(folder.parent / "storage" / "served", **settings),
        kind="export",
        step="publish",
        params={"name": "faq"},
        step_folders=exported.folders,
        results={"export": exported.result},
        chat_unloaded=chat_unloaded,
    )
    return publish.run(step)


class TestLlamaServer:
    def test_the_router_answers_for_each_file(
        self, tmp_path: Path, exported: Exported, router: LlamaProcess
    ) -> None:
        result = run_publish(tmp_path / "publish", exported, chat_server_url=router.url, chat_server_key=KEY)
        names = [row["backend_name"] for row in result["files"]]
        assert result["model"] == "faq"
        assert result["context_length"] == 256
        assert result["default"]["quantization"] == "Q4_K_M"
        assert {row["backend"] for row in result["files"]} == {"llama_server"}
        assert sorted(router.server.model_names()) == sorted(names)
        answer = router.server._post(
            "/v1/chat/completions",
            {"model": names[0], "messages": [{"role": "user", "content": QUESTION}], "temperature": 0},
        )
        assert answer["choices"][0]["message"]["content"] == FACTS[QUESTION]
        assert answer["choices"][0]["finish_reason"] == "stop"

    def test_again_changes_nothing(self, tmp_path: Path, exported: Exported, router: LlamaProcess) -> None:
        settings = {"chat_server_url": router.url, "chat_server_key": KEY}
        first = run_publish(tmp_path / "first", exported, **settings)
        served = sorted((tmp_path / "storage" / "served").iterdir())
        inodes = [path.stat().st_ino for path in served]
        assert run_publish(tmp_path / "second", exported, **settings) == first
        assert sorted((tmp_path / "storage" / "served").iterdir()) == served
        assert [path.stat().st_ino for path in served] == inodes

    def test_loads_nothing_while_another_step_holds_the_device(
        self, tmp_path: Path, exported: Exported, router: LlamaProcess
    ) -> None:
        settings = {"chat_server_url": router.url, "chat_server_key": KEY}
        result = run_publish(tmp_path / "publish", exported, chat_unloaded=True, **settings)
        names = [row["backend_name"] for row in result["files"]]
        assert sorted(router.server.model_names()) == sorted(names)
        assert router.server.loaded_models() == []

    def test_no_server_is_worth_another_try(self, tmp_path: Path, exported: Exported) -> None:
        with pytest.raises(Unavailable, match="does not answer"):
            run_publish(tmp_path / "publish", exported)

    def test_a_wrong_key_is_said(self, tmp_path: Path, exported: Exported, router: LlamaProcess) -> None:
        with pytest.raises(Unavailable, match="key"):
            run_publish(tmp_path / "publish", exported, chat_server_url=router.url, chat_server_key="no")


class TestPlace:
    def test_is_the_same_file_and_leaves_nothing_beside(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF")
        for _ in range(2):
            place(tmp_path / "a.gguf", tmp_path / "served" / "b.gguf")
        assert (tmp_path / "served" / "b.gguf").samefile(tmp_path / "a.gguf")
        assert [path.name for path in (tmp_path / "served").iterdir()] == ["b.gguf"]

    def test_replaces_what_a_crash_left_unfinished(self, tmp_path: Path) -> None:
        (tmp_path / "a.gguf").write_bytes(b"GGUF, all of it")
        (tmp_path / "b.gguf").write_bytes(b"GGUF, a")
        place(tmp_path / "a.gguf", tmp_path / "b.gguf")
        assert (tmp_path / "b.gguf").read_bytes() == b"GGUF, all of it"


class TestBackendName:
    def test_holds_the_hash_and_no_odd_characters(self) -> None:
        assert backend_name("my_faq", "ab" * 32) == "my-faq-v-abababababab"


class TestOllama:
    def test_is_asked_on_the_cpu_while_another_step_holds_the_device(
        self, tmp_path: Path, exported: Exported, ollama: FakeOllama
    ) -> None:
        settings = {"chat_backend": "ollama", "ollama_url": ollama.url}
        run_publish(tmp_path / "publish", exported, chat_unloaded=True, **settings)
        assert ollama.options
        assert all(options["num_gpu"] == 0 for options in ollama.options)

    @pytest.mark.parametrize("version", ["0.24.0", "0.32.15", "0.34.1"])
    def test_every_version_sends_the_training_prompt_and_stops(
        self, tmp_path: Path, exported: Exported, ollama: FakeOllama, version: str
    ) -> None:
        ollama.version = version
        result = run_publish(tmp_path / "publish", exported, chat_backend="ollama", ollama_url=ollama.url)
        name = result["default"]["backend_name"]
        assert set(ollama.models) == {row["backend_name"] for row in result["files"]}
        assert ollama.models[name].parameters == {
            "num_ctx": 256,
            "repeat_penalty": 1.0,
            "stop": ["<|im_end|>"],
        }
        answer = ollama.chat(
            {
                "model": name,
                "messages": [{"role": "user", "content": QUESTION}],
                "options": {"temperature": 0, "num_predict": 60},
            }
        )
        assert answer["message"]["content"] == FACTS[QUESTION]
        assert answer["done_reason"] == "stop"

    def test_again_uploads_nothing(self, tmp_path: Path, exported: Exported, ollama: FakeOllama) -> None:
        settings = {"chat_backend": "ollama", "ollama_url": ollama.url}
        first = run_publish(tmp_path / "first", exported, **settings)
        ollama.requests.clear()
        assert run_publish(tmp_path / "second", exported, **settings) == first
        assert not [path for _, path in ollama.requests if "blobs" in path or "create" in path]

    def test_another_prompt_than_the_training_s_fails_and_is_deleted_again(
        self, tmp_path: Path, exported: Exported, ollama: FakeOllama
    ) -> None:
        ollama.templates_broken = True
        with pytest.raises(StepFailed, match="chat template writes") as failure:
            run_publish(tmp_path / "publish", exported, chat_backend="ollama", ollama_url=ollama.url)
        assert "<|im_start|>user" in failure.value.stderr
        assert ollama.models == {}

    def test_context_is_no_larger_than_the_operator_allows(
        self, tmp_path: Path, exported: Exported, ollama: FakeOllama
    ) -> None:
        result = run_publish(
            tmp_path / "publish", exported, chat_backend="ollama", ollama_url=ollama.url, context_size=128
        )
        assert ollama.models[result["default"]["backend_name"]].parameters["num_ctx"] == 128

    def test_a_version_that_cannot_tell_is_judged_by_its_token_count(
        self, tmp_path: Path, exported: Exported, ollama: FakeOllama
    ) -> None:
        ollama.version, ollama.templates_broken = "0.11.0", True
        with pytest.raises(StepFailed, match="tokens where the training's has"):
            run_publish(tmp_path / "publish", exported, chat_backend="ollama", ollama_url=ollama.url)

    def test_truncated_file_is_refused(self, tmp_path: Path, exported: Exported, ollama: FakeOllama) -> None:
        folder = tmp_path / "export"
        folder.mkdir()
        for row in exported.result["files"]:
            content = (exported.folders["export"] / row["path"]).read_bytes()
            (folder / row["path"]).write_bytes(content[: len(content) // 2])
        cut = Exported({**exported.folders, "export": folder}, exported.result, [])
        with pytest.raises(StepFailed, match="exceeds file size"):
            run_publish(tmp_path / "publish", cut, chat_backend="ollama", ollama_url=ollama.url)
        shutil.rmtree(folder)
