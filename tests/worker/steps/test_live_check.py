"""The server that is to answer for a model is asked the golden prompts again, before the name moves there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from db.errors import StepFailed
from db.settings import Settings
from serving import llama_cpp
from serving.local_port import free_port
from serving.openai_compatible import GreedyAnswer
from serving.served_adapters import prepare_folder
from tests.serving.fake_ollama import FakeOllama
from tests.serving.llama_process import LlamaProcess
from tests.worker.steps.export_fixtures import (
    Exported,
    shared_models,
    shared_verified,
    step_of,
    step_settings,
)
from worker.steps import publish
from worker.steps.base_files import cache_folder
from worker.steps.golden_answers import difference, read_golden
from worker.steps.publish import backend_name

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def folders(root: Path) -> dict[str, Path]:
    return shared_verified(root)


def run_publish(
    folder: Path, exported: Exported, folders: dict[str, Path], **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    step, said = step_of(
        folder / "publish",
        step_settings(folder / "storage" / "served", **settings),
        kind="export",
        step="publish",
        params={"name": "faq"},
        step_folders=folders,
        results={"export": exported.result},
    )
    return publish.run(step), said


@contextmanager
def router(folder: Path, *arguments: str) -> Iterator[LlamaProcess]:
    """The router as `lathe up` starts it, with more arguments."""
    settings = Settings(chat_port=free_port(), data_dir=folder)
    prepare_folder(settings.served_models_dir)
    argv = [*llama_cpp.chat_server_argv(llama_cpp.require_tools(settings), settings), *arguments]
    process = LlamaProcess(folder, argv=argv, port=settings.chat_port)
    try:
        yield process
    finally:
        process.stop()


def served(folder: Path, exported: Exported) -> Path:
    """The place of the Q8_0 file in the router's folder."""
    [row] = [row for row in exported.result["files"] if row["quantization"] == "Q8_0"]
    return folder / "storage" / "served" / f"{backend_name('faq', row['sha256'])}.gguf"


class TestLlamaServer:
    def test_prompts_and_answers_of_each_file_are_the_verified_ones(
        self, tmp_path: Path, exported: Exported, folders: dict[str, Path]
    ) -> None:
        with router(tmp_path) as process:
            result, _ = run_publish(tmp_path, exported, folders, chat_server_url=process.url)
        for row in result["files"]:
            assert row["live"]["golden_prompts"] >= 14
            assert row["live"]["golden_answers"] == 4

    def test_a_damaged_file_in_the_served_folder_is_put_there_anew(
        self, tmp_path: Path, exported: Exported, folders: dict[str, Path]
    ) -> None:
        """Of the same name and size, as a failing disk leaves it."""
        content = bytearray(exported.file("Q8_0").read_bytes())
        content[-200_000:] = bytes(200_000)
        place = served(tmp_path, exported)
        place.parent.mkdir(parents=True)
        place.write_bytes(content)
        with router(tmp_path) as process:
            _, said = run_publish(tmp_path, exported, folders, chat_server_url=process.url)
        assert [each["message"] for each in said if each.get("level") == "warn"] == [
            f"{place.name} was in the served folder already, with other content than was verified: it is put "
            "there anew."
        ]
        assert place.read_bytes() == exported.file("Q8_0").read_bytes()

    def test_a_server_with_a_template_of_its_own_is_refused(
        self, tmp_path: Path, exported: Exported, folders: dict[str, Path]
    ) -> None:
        other = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
        wrong = r"the server's chat template writes \"\[INST\] .* look at how the server is started"
        with router(tmp_path, "--chat-template", other) as process, pytest.raises(StepFailed, match=wrong):
            run_publish(tmp_path, exported, folders, chat_server_url=process.url)

    def test_a_server_that_answers_otherwise_is_refused(
        self, tmp_path: Path, exported: Exported, folders: dict[str, Path]
    ) -> None:
        wrong = r"it answers .* where the verified file answers '.*they part at token"
        with router(tmp_path, "--rope-freq-base", "3") as process, pytest.raises(StepFailed, match=wrong):
            run_publish(tmp_path, exported, folders, chat_server_url=process.url)


class TestOllama:
    @pytest.mark.parametrize("version", ["0.11.0", "0.34.1"])
    def test_answers_are_the_verified_ones(
        self, tmp_path: Path, exported: Exported, folders: dict[str, Path], ollama: FakeOllama, version: str
    ) -> None:
        ollama.version = version
        result, _ = run_publish(tmp_path, exported, folders, chat_backend="ollama", ollama_url=ollama.url)
        assert all(row["live"]["golden_answers"] == 4 for row in result["files"])

    def test_another_model_by_that_name_is_refused(
        self, tmp_path: Path, root: Path, exported: Exported, folders: dict[str, Path], ollama: FakeOllama
    ) -> None:
        """The untuned base, with the same template."""
        step, _ = step_of(tmp_path / "look", step_settings(root / "served"))
        base = cache_folder(step, shared_models(root).base) / "Q8_0.gguf"
        name = served(tmp_path, exported).stem
        shutil.copyfile(base, tmp_path / "blobs" / f"sha256-{'0' * 64}")
        ollama.create(
            {"model": name, "files": {"model.gguf": f"sha256:{'0' * 64}"}, "parameters": {"stop": []}}
        )
        with pytest.raises(
            StepFailed, match="Ollama does not serve this model as it was verified: it answers"
        ):
            run_publish(tmp_path, exported, folders, chat_backend="ollama", ollama_url=ollama.url)
        assert name not in ollama.models


class TestDifference:
    VERIFIED = GreedyAnswer("a b c", [1, 2, 3], [3.0, 0.1, 3.0], ended=True)

    def test_none_between_equals(self) -> None:
        assert difference(self.VERIFIED, self.VERIFIED) is None

    def test_a_token_that_the_file_was_sure_of_counts(self) -> None:
        live = GreedyAnswer("x b c", [9, 2, 3], [1.0, 1.0, 1.0], ended=True)
        assert "they part at token 1" in str(difference(self.VERIFIED, live))

    def test_a_toss_of_the_coin_does_not_nor_what_follows_it(self) -> None:
        live = GreedyAnswer("a x y", [1, 8, 9], [1.0, 1.0, 1.0], ended=False)
        assert difference(self.VERIFIED, live) is None

    def test_an_answer_that_goes_on_where_the_file_ended_counts(self) -> None:
        live = GreedyAnswer("a b c d", [1, 2, 3, 4], [1.0] * 4, ended=False)
        assert difference(self.VERIFIED, live) is not None


class TestReadGolden:
    def test_is_none_of_a_step_that_left_nothing(self, tmp_path: Path) -> None:
        assert read_golden(tmp_path, "Q8_0") is None
        assert read_golden(None, "Q8_0") is None
