"""Uploads that become models: checked, loaded by a real llama-server, and published by its router."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput, Unavailable
from db.params.pull import PullParams
from serving.backends.prompt_formats import FORMATS
from serving.gguf_header import read_header
from tests.serving.fake_ollama import FakeOllama
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_gguf import TEMPLATE, write_random_gguf
from tests.worker.steps.export_fixtures import step_of, step_settings
from worker.step import FileInput
from worker.steps import publish, pull, verify_pulled

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
FILE = "file-1"


class Pulling:
    """A job of kind pull, step by step."""

    def __init__(
        self,
        root: Path,
        source: dict[str, Any],
        *,
        upload: Path | None = None,
        prompt_format: str | None = None,
        **settings: Any,
    ) -> None:
        params = {
            "source": source,
            "name": "pulled",
            "quantizations": ["F16"],
            "prompt_format": prompt_format,
        }
        self._fields: dict[str, Any] = {
            "kind": "pull",
            "params": PullParams.model_validate(params).model_dump(mode="json"),
            "step_folders": {},
            "results": {},
        }
        if upload is not None:
            self._fields["files"] = {FILE: FileInput(upload, upload.name, upload.stat().st_size)}
        self.root, self._settings = root, settings
        self.said: list[dict[str, Any]] = []

    def run(self, module: Any, name: str) -> dict[str, Any]:
        settings = step_settings(self.root / "served", **self._settings)
        step, said = step_of(self.root / name, settings, step=name, **self._fields)
        try:
            result: dict[str, Any] = module.run(step)
        finally:
            self.said += said
        self._fields["results"][name], self._fields["step_folders"][name] = result, step.input.folder
        return result

    def events(self, level: str) -> str:
        return "\n".join(
            row["message"] for row in self.said if row["type"] == "event" and row["level"] == level
        )


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "random.gguf"
    write_random_gguf(path)
    return path


@pytest.fixture
def router(tmp_path: Path) -> Iterator[LlamaProcess]:
    process = LlamaProcess(tmp_path)
    yield process
    process.stop()


def zipped(target: Path, files: dict[str, Path | bytes]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return target


class TestGGUF:
    def test_answers_on_llama_server(self, tmp_path: Path, gguf: Path, router: LlamaProcess) -> None:
        served = tmp_path / "storage" / "served"
        pulling = Pulling(
            tmp_path / "job",
            {"file": FILE},
            upload=gguf,
            chat_server_url=router.url,
            served_models_dir=served,
        )
        assert pulling.run(pull, "pull")["source"]["format"] == "gguf"
        assert pulling.run(verify_pulled, "verify")["files"][0]["answers"] == 1
        published = pulling.run(publish, "publish")
        assert router.server.model_names() == [published["default"]["backend_name"]]
        assert published["default"]["quantization"] == "F32"
        assert "no trained weights" in pulling.events("info")

    def test_answers_on_ollama_with_the_template_and_stops_of_the_file(
        self, tmp_path: Path, gguf: Path, ollama: FakeOllama
    ) -> None:
        pulling = Pulling(
            tmp_path / "job", {"file": FILE}, upload=gguf, chat_backend="ollama", ollama_url=ollama.url
        )
        for module, name in ((pull, "pull"), (publish, "publish")):
            published = pulling.run(module, name)
        model = ollama.models[published["default"]["backend_name"]]
        assert model.parameters == {"num_ctx": 2048, "repeat_penalty": 1.0, "stop": ["<|end|>"]}
        assert model.template is not None

    def test_one_that_llama_cpp_cannot_load_is_refused(self, tmp_path: Path, gguf: Path) -> None:
        content = gguf.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llamb", 1)
        gguf.write_bytes(content)
        pulling = Pulling(tmp_path / "job", {"file": FILE}, upload=gguf)
        pulling.run(pull, "pull")
        with pytest.raises(InvalidInput, match=r"llama\.cpp cannot answer") as caught:
            pulling.run(verify_pulled, "verify")
        assert caught.value.code == "model_does_not_load"

    def test_a_header_that_lies_is_refused_before_llama_cpp_sees_it(self, tmp_path: Path, gguf: Path) -> None:
        gguf.write_bytes(gguf.read_bytes()[:-64])
        with pytest.raises(InvalidInput, match="not whole"):
            Pulling(tmp_path / "job", {"file": FILE}, upload=gguf).run(pull, "pull")


class TestPromptFormat:
    """A format that the request names is for models that bring no template."""

    @pytest.fixture
    def bare(self, tmp_path: Path) -> Path:
        path = tmp_path / "bare.gguf"
        write_random_gguf(path, template=None)
        return path

    def test_a_gguf_without_a_template_gets_the_formats(self, tmp_path: Path, bare: Path) -> None:
        pulling = Pulling(tmp_path / "job", {"file": FILE}, upload=bare, prompt_format="alpaca")
        result = pulling.run(pull, "pull")
        path = tmp_path / "job" / "pull" / result["files"][0]["path"]
        assert result["files"][0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (
            read_header(path, "it").chat_template == FORMATS["alpaca"].template() == result["chat_template"]
        )
        assert result["stops"] == ["### Instruction:"]
        assert "gets that of the prompt format 'alpaca'" in pulling.events("info")
        assert not pulling.events("warn")

    def test_without_a_format_it_is_told(self, tmp_path: Path, bare: Path) -> None:
        pulling = Pulling(tmp_path / "job", {"file": FILE}, upload=bare)
        assert pulling.run(pull, "pull")["stops"] == []
        assert "makes one up (ChatML)" in pulling.events("warn")

    def test_a_files_own_template_is_kept(self, tmp_path: Path, gguf: Path) -> None:
        pulling = Pulling(tmp_path / "job", {"file": FILE}, upload=gguf, prompt_format="alpaca")
        result = pulling.run(pull, "pull")
        assert (result["chat_template"], result["stops"]) == (TEMPLATE, [])
        assert "which is kept" in pulling.events("info")

    def test_ollama_gets_its_stops_as_well(self, tmp_path: Path, bare: Path, ollama: FakeOllama) -> None:
        served = {"chat_backend": "ollama", "ollama_url": ollama.url}
        pulling = Pulling(tmp_path / "job", {"file": FILE}, upload=bare, prompt_format="vicuna", **served)
        pulling.run(pull, "pull")
        published = pulling.run(publish, "publish")
        model = ollama.models[published["default"]["backend_name"]]
        assert model.parameters["stop"] == ["<|end|>", "</s>", "USER:"]


class TestSafetensors:
    def test_a_zipped_folder_gets_a_template_is_converted_and_can_be_a_base(
        self, tmp_path: Path, micro_model: Path
    ) -> None:
        files: dict[str, Path | bytes] = {
            f"micro/{path.name}": path
            for path in micro_model.iterdir()
            if path.is_file() and path.suffix != ".jinja"
        }
        config = json.loads((micro_model / "tokenizer_config.json").read_bytes())
        config.pop("chat_template", None)
        files |= {
            "micro/tokenizer_config.json": json.dumps(config).encode(),
            "micro/modeling_micro.py": b"import os",
            "micro/old.bin": b"x",
        }
        archive = zipped(tmp_path / "micro.zip", files)
        pulling = Pulling(tmp_path / "job", {"file": FILE}, upload=archive, prompt_format="llama3")
        result = pulling.run(pull, "pull")
        folder = tmp_path / "job" / "pull"
        assert result["files"][0]["quantization"] == "F16"
        header = read_header(folder / result["files"][0]["path"], "it")
        assert header.architecture == "llama"
        assert header.chat_template == FORMATS["llama3"].template()
        assert (folder / result["folder"] / "config.json").is_file()
        assert not (folder / "unpacked").exists()
        assert "modeling_micro.py" in pulling.events("warn")
        pulling.run(verify_pulled, "verify")

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "pytorch_model.bin is a pickle"),
            ({"model.safetensors": b"x"}, "no config.json"),
            ({"a/config.json": b"{}", "b/config.json": b"{}"}, "several models"),
            ({"config.json": b"{}", "model.safetensors": b"x" * 40}, "not a safetensors file"),
            ({"config.json": b"{}", "model.safetensors": bytes(64 * 1024**2)}, "at most"),
            (
                {"config.json": b'{"auto_map": {}, "model_type": "x"}', "model.safetensors": None},
                "code of its own",
            ),
        ],
    )
    def test_is_refused(
        self, tmp_path: Path, micro_model: Path, files: dict[str, bytes | None], message: str
    ) -> None:
        content = {name: micro_model / name if data is None else data for name, data in files.items()}
        archive = zipped(tmp_path / "model.zip", content)
        with pytest.raises(InvalidInput, match=message):
            Pulling(tmp_path / "job", {"file": FILE}, upload=archive).run(pull, "pull")

    def test_no_name_leaves_the_folder(self, tmp_path: Path) -> None:
        archive = zipped(
            tmp_path / "model.zip", {"config.json": b"{}", "../../evil.json": b"x", "/evil.json": b"x"}
        )
        with pytest.raises(InvalidInput, match="no safetensors"):
            Pulling(tmp_path / "job", {"file": FILE}, upload=archive).run(pull, "pull")
        assert not list(tmp_path.rglob("evil.json"))


class TestOllamasLibrary:
    def job(self, root: Path, ollama: FakeOllama, name: str) -> Pulling:
        return Pulling(root / "job", {"ollama": name}, chat_backend="ollama", ollama_url=ollama.url)

    def test_is_pulled_by_ollama_and_served_under_our_name(
        self, tmp_path: Path, gguf: Path, ollama: FakeOllama
    ) -> None:
        ollama.library["qwen3:0.6b"] = gguf
        job = self.job(tmp_path, ollama, "qwen3:0.6b")
        for module, name in ((pull, "pull"), (verify_pulled, "verify"), (publish, "publish")):
            published = job.run(module, name)
        assert list(ollama.models) == [published["default"]["backend_name"]]
        assert published["default"]["quantization"] == "Q8_0"
        assert {row["total"] for row in job.said if row["type"] == "progress"} >= {gguf.stat().st_size}

    def test_what_the_library_lacks_is_refused_and_an_outage_is_not(
        self, tmp_path: Path, ollama: FakeOllama
    ) -> None:
        with pytest.raises(InvalidInput, match="library has no nobody"):
            self.job(tmp_path, ollama, "nobody:1b").run(pull, "pull")
        ollama.library_down = True
        with pytest.raises(Unavailable, match="connection refused"):
            self.job(tmp_path, ollama, "nobody:1b").run(pull, "pull")
