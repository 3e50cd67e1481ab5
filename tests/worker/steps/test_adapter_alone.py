"""A fine-tune that is published as an adapter beside its base: exported, verified, served, taken away."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from db.disk import file_sha256
from db.errors import InvalidInput, StepFailed
from db.settings import Settings
from serving.llama_cpp import ADAPTER_PRESETS, chat_server_argv, require_tools
from serving.openai_compatible import LlamaServer
from serving.served_adapters import base_beside, prepare_folder, withdraw
from tests.serving.fake_ollama import FakeOllama
from tests.serving.llama_process import LlamaProcess
from tests.worker.steps.export_fixtures import (
    FACTS,
    TrainedModels,
    base_weights,
    shared_export,
    shared_models,
    shared_verified,
    step_of,
    step_settings,
    write_rows,
)
from tests.worker.steps.test_planted_faults import rewrite
from worker.step import Step
from worker.steps import export, publish, verify
from worker.steps.adapter_export import check_server
from worker.steps.base_files import cache_folder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
QUESTION = "Where do pandas live?"
TYPE = "Q8_0"


class FineTune:
    """Its steps after the training, each run for real in a folder of its own."""

    def __init__(self, folder: Path, root: Path, models: TrainedModels) -> None:
        self.folder, self.root, self.models = folder, root, models
        self.folders = {name: folder / name for name in ("prepare", "train")}
        shutil.copytree(models.adapter, self.folders["train"] / "adapter")
        self.folders["prepare"].mkdir()
        write_rows(self.folders["prepare"] / "train.jsonl", models.rows)
        self.results: dict[str, Any] = {}
        self.said: list[dict[str, Any]] = []

    def step(self, name: str, *, model: str = "faq", kind: str = "fine_tune", **settings: Any) -> Step:
        served = self.folder / "storage" / "served"
        step, self.said = step_of(
            self.folder / f"{name}-{model}",
            step_settings(served, **{"cache_dir": self.root / "cache"} | settings),
            step=name,
            kind=kind,
            params={"name": model, "quantizations": [TYPE], "publish": "adapter"},
            base=base_weights(self.models.base),
            step_folders=self.folders,
            results=self.results,
        )
        return step

    def run(self, name: str, **changes: Any) -> dict[str, Any]:
        step = self.step(name, **changes)
        result = {"export": export.run, "verify": verify.run}[name](step)
        self.folders[name], self.results[name] = step.input.folder, result
        return result

    def publish(self, model: str = "faq", **settings: Any) -> dict[str, Any]:
        """As an export does it, which leaves no card."""
        return publish.run(self.step("publish", model=model, kind="export", **settings))

    @property
    def served(self) -> Path:
        return self.folder / "storage" / "served"


@pytest.fixture(scope="module")
def verified(root: Path, tmp_path_factory: pytest.TempPathFactory) -> FineTune:
    shared_verified(root)  # has made the base's file
    fine_tune = FineTune(tmp_path_factory.mktemp("adapter"), root, shared_models(root))
    fine_tune.run("export")
    fine_tune.run("verify")
    return fine_tune


@pytest.fixture
def published(verified: FineTune, tmp_path: Path) -> FineTune:
    """The same with a served folder of its own."""
    verified.folder = tmp_path
    return verified


class TestExport:
    def test_leaves_the_adapter_and_names_the_base_s_file(self, verified: FineTune) -> None:
        [row] = verified.results["export"]["files"]
        assert row["path"] == "faq-adapter.gguf"
        assert row["bytes"] < row["base"]["bytes"]
        folder = verified.folders["export"]
        assert [path.name for path in folder.glob("*.gguf")] == ["faq-adapter.gguf"]
        reader = GGUFReader(folder / row["path"])
        names = {tensor.name for tensor in reader.tensors}
        assert {"blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"} <= names
        alpha = reader.get_field("adapter.lora.alpha")
        assert alpha is not None
        assert alpha.contents() == 64


class TestVerify:
    def test_the_pair_answers_as_the_trained_weights_do(self, verified: FineTune) -> None:
        [figures] = verified.results["verify"]["files"]
        assert figures["top1_agreement"] >= 0.98
        assert figures["kl"] <= figures["kl_limit"]
        assert figures["adapter_merged"] == pytest.approx(0, abs=0.02)
        assert figures["template_equal"]
        assert figures["end_token_ends"]
        assert figures["stops"]

    def planted(self, verified: FineTune, folder: Path, base: Path) -> str:
        """What verify says where another file lies in the place of the base's."""
        [row] = verified.results["export"]["files"]
        step = verified.step("verify", model="planted", cache_dir=folder / "cache")
        place = cache_folder(step, verified.models.base) / f"{TYPE}.gguf"
        place.parent.mkdir(parents=True)
        shutil.copyfile(base, place)
        row |= {"base": {**row["base"], "sha256": file_sha256(place)}}
        with pytest.raises(InvalidInput) as refused:
            verify.run(step)
        assert refused.value.code == "verification_failed"
        return refused.value.message

    @pytest.fixture(autouse=True)
    def _unchanged(self, verified: FineTune) -> Iterator[None]:
        rows = [dict(row) for row in verified.results["export"]["files"]]
        yield
        verified.results["export"]["files"] = rows

    def test_another_base_under_the_adapter(self, verified: FineTune, tmp_path: Path) -> None:
        import torch

        sound = cache_folder(verified.step("look"), verified.models.base) / f"{TYPE}.gguf"
        torch.manual_seed(1)
        others = {
            tensor.name: torch.randn(*map(int, tensor.shape[::-1])).mul(0.05).numpy()
            for tensor in GGUFReader(sound).tensors
            if "attn" in tensor.name or "ffn" in tensor.name
            if len(tensor.shape) == 2
        }
        rewrite(sound, tmp_path / "other.gguf", {}, others)
        said = self.planted(verified, tmp_path, tmp_path / "other.gguf")
        assert "the file's weights are not those of tiny: it was made from another base" in said

    def test_a_base_that_has_the_adapter_in_it_already(self, verified: FineTune, tmp_path: Path) -> None:
        said = self.planted(verified, tmp_path, shared_export(verified.root).file(TYPE))
        assert "the base that the adapter is served beside has it in it already" in said

    def test_a_base_that_has_changed_since_the_export(self, verified: FineTune) -> None:
        [row] = verified.results["export"]["files"]
        row["base"] = {**row["base"], "sha256": "0" * 64}
        with pytest.raises(StepFailed, match="is not the base's file that this adapter was exported for"):
            verify.run(verified.step("verify", model="changed"))


class TestLlamaServer:
    def test_answers_while_another_goes_on_and_is_taken_away_again(self, published: FineTune) -> None:
        prepare_folder(published.served)
        process = LlamaProcess(published.folder)
        try:
            first = published.publish(chat_server_url=process.url)["default"]
            assert first["live"]["golden_answers"] == 4
            name = first["backend_name"]
            before = port_of(process, name)
            second = published.publish("other", chat_server_url=process.url)["default"]["backend_name"]
            assert port_of(process, name) == before  # its process is the same
            assert answer(process, name) == answer(process, second) == FACTS[QUESTION]
        finally:
            process.stop()
        base = base_beside(published.served, name)
        assert base is not None
        assert base == base_beside(published.served, second)
        assert base.samefile(cache_folder(published.step("look"), published.models.base) / f"{TYPE}.gguf")
        withdraw(published.served, name)
        assert base.is_file()
        assert f"[{name}]" not in (published.served / ADAPTER_PRESETS).read_text()
        withdraw(published.served, second)
        left = [path.name for path in published.served.rglob("*") if not path.name.startswith(".")]
        assert sorted(left) == [ADAPTER_PRESETS, "bases"]

    def test_a_router_without_the_presets_is_refused(self, published: FineTune) -> None:
        settings = Settings(data_dir=published.folder)
        prepare_folder(settings.served_models_dir)
        argv = chat_server_argv(require_tools(settings), settings)
        at = argv.index("--models-preset")
        process = LlamaProcess(published.folder, argv=argv[:at] + argv[at + 2 :], port=settings.chat_port)
        try:
            with pytest.raises(InvalidInput, match="start it with --models-preset") as refused:
                published.publish(chat_server_url=process.url)
        finally:
            process.stop()
        assert refused.value.code == "adapters_not_served"
        assert not list(published.served.glob("*.gguf"))

    def test_a_folder_that_presets_cannot_name_is_refused(self, published: FineTune, tmp_path: Path) -> None:
        published.folder = tmp_path / "a#b"
        with pytest.raises(InvalidInput, match="presets cannot name files in"):
            published.publish()


class TestOllama:
    @pytest.fixture
    def ollama(self, tmp_path: Path) -> Iterator[FakeOllama]:
        (tmp_path / "blobs").mkdir()
        server = FakeOllama(tmp_path / "blobs", version="0.24.0").start()
        yield server
        server.stop()

    def test_a_version_that_takes_adapters_gets_the_base_once(
        self, published: FineTune, ollama: FakeOllama
    ) -> None:
        settings = {"chat_backend": "ollama", "ollama_url": ollama.url}
        check_server(published.step("prepare", **settings))
        row = published.publish(**settings)["default"]
        assert row["live"]["golden_answers"] == 4
        published.publish("other", **settings)
        uploads = [path for method, path in ollama.requests if method == "POST" and "/blobs/" in path]
        assert len(uploads) == 2  # base and adapter

    def test_a_version_that_takes_none_is_refused_before_and_after(
        self, published: FineTune, ollama: FakeOllama
    ) -> None:
        ollama.version = "0.34.1"
        settings = {"chat_backend": "ollama", "ollama_url": ollama.url}
        with pytest.raises(InvalidInput, match=r"takes no adapters from version 0\.34 on"):
            check_server(published.step("prepare", **settings))
        with pytest.raises(InvalidInput, match="no longer supported") as refused:
            published.publish(**settings)
        assert refused.value.code == "adapters_not_served"


def port_of(process: LlamaProcess, name: str) -> str:
    [row] = [row for row in process.server._request("GET", "/models")["data"] if row["id"] == name]
    arguments = row["status"]["args"]
    return str(arguments[arguments.index("--port") + 1])


def answer(process: LlamaProcess, name: str) -> str:
    with LlamaServer(process.url, model=name) as server:
        said = server.chat([{"role": "user", "content": QUESTION}], max_tokens=60)
    return str(said["choices"][0]["message"]["content"])
