"""The servers that `lathe up` starts for backends of type transformers."""

import sys
from pathlib import Path

import pytest

from db.errors import Conflict, InvalidInput
from db.settings import Settings
from deploy.local import parts, ports
from deploy.local.parts import Part, Secrets
from serving.backends.configuration import Process
from serving.backends.vllm_process import vllm_argv
from serving.llama_cpp import Tools

TOOLS = Tools(Path("/bin"), None, None, "x", "path")


def settings_with(folder: Path, process: str) -> Settings:
    path = folder / "backends.toml"
    path.write_text(f"[tuned]\ntype = 'transformers'\nprocess = {{{process}}}\n")
    return Settings(data_dir=folder, backends=path, chat_server_url="http://chat:1")


def part_of(settings: Settings) -> Part:
    [part] = parts.model_servers(settings, Secrets(settings), TOOLS, None, None)
    return part


class TestPart:
    def test_transformers(self, tmp_path: Path) -> None:
        settings = settings_with(tmp_path, "model = '/m', adapter_id = '/a', bits = 4, devices = '1'")
        part = part_of(settings)
        *_, python, flag, module, name, written = part.argv
        assert (python, flag, module, name) == (sys.executable, "-m", "worker.transformers_server", "tuned")
        process = Process.model_validate_json(written)
        assert (process.model, process.adapter_id, process.bits) == ("/m", "/a", 4)
        assert part.environment == {"CUDA_VISIBLE_DEVICES": "1"}
        assert (part.name, part.address) == ("backend-tuned", "http://127.0.0.1:8090")
        assert parts.environment(settings, Secrets(settings))["LATHE_BACKENDS"] == str(settings.backends)

    def test_its_port_is_wanted(self, tmp_path: Path) -> None:
        settings = settings_with(tmp_path, "model = '/m', port = 8000")
        with pytest.raises(Conflict, match=r"tuned\.process\.port"):
            ports.require_free(parts.wanted_ports(settings))


class TestVllm:
    def test_everything(self) -> None:
        process = Process(
            model="m", revision="r", adapter_id="a", bits=4, engine="vllm", tensor_parallel_size=2,
            vllm_kwargs={"max_model_len": 4096, "enforce_eager": True, "limit_mm_per_prompt": {"image": 1}},
        )  # fmt: skip
        assert vllm_argv("tuned", process) == [
            "vllm", "serve", "m", "--host", "127.0.0.1", "--port", "8090", "--tensor-parallel-size", "2",
            "--served-model-name", "tuned-base", "--enable-lora", "--lora-modules", "tuned=a",
            "--revision", "r", "--quantization", "bitsandbytes", "--max-model-len", "4096",
            "--enforce-eager", "--limit-mm-per-prompt", '{"image": 1}',
        ]  # fmt: skip

    @pytest.mark.parametrize("field", [{"model_kwargs": {"x": 1}}, {"bits": 8}])
    def test_what_is_the_other_engines(self, field: dict[str, object]) -> None:
        with pytest.raises(InvalidInput, match=f"process.{next(iter(field))}"):
            vllm_argv("tuned", Process.model_validate({"model": "m", "engine": "vllm", **field}))


@pytest.mark.parametrize("given", ["trust_remote_code", "trust-remote-code", "token", "host"])
def test_what_loading_takes_not(tmp_path: Path, given: str) -> None:
    settings = settings_with(tmp_path, f"model = 'm', vllm_kwargs = {{'{given}' = true}}")
    with pytest.raises(InvalidInput, match=r"tuned\.process\.vllm_kwargs: takes no"):
        parts.wanted_ports(settings)
