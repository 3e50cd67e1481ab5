"""The export in one pass, against llama.cpp's three steps: whole files, byte by byte."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from db.settings import Settings
from serving.llama_cpp import Tools, require_tools
from tests.worker.steps.export_fixtures import write_tokenizer

EQUAL = [
    "llama", "llama-tied", "mistral", "qwen2", "qwen2-tied-rslora", "qwen3", "qwen3-tied-dora", "gemma-tied",
    "phi3", "no-adapter", "stored-in-fp32", "half-precision", "embedding", "narrow-rows",
]  # fmt: skip

ALONE = [
    "llama", "llama-tied", "mistral", "qwen2", "qwen2-tied-rslora", "qwen3", "gemma-tied", "phi3",
    "half-precision", "narrow-rows",
]  # fmt: skip


@pytest.fixture(scope="module")
def tools() -> Tools:
    return require_tools(Settings())


@pytest.fixture(scope="module")
def compared(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `one_pass_families` says of each case."""
    argv = [sys.executable, "-m", "tests.worker.steps.one_pass_families"]
    argv += [str(tools.convert), str(tools.python), str(tools.bin), str(Settings().cache_dir)]
    argv.append(str(tmp_path_factory.mktemp("families") / "models"))
    answer = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=900)
    assert answer.returncode == 0, answer.stderr[-3000:]
    said = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith('{"case"')]
    return {one["case"]: one for one in said}


class TestAgainstThreeSteps:
    @pytest.mark.parametrize("case", EQUAL)
    def test_files_are_the_same_to_the_byte(self, compared: dict[str, Any], case: str) -> None:
        said = {name: value for name, value in compared[case].items() if name != "alone"}
        assert said == {"case": case, "differing": [], "refused": None}

    @pytest.mark.parametrize("case", ALONE)
    def test_an_adapter_alone_is_llama_cpp_s_own(self, compared: dict[str, Any], case: str) -> None:
        alone = compared[case]["alone"]
        assert alone["tensors"] > 0
        assert alone["differing"] == []
        # rsLoRA divides by the root of the rank (12), and llama.cpp by the rank.
        assert alone["alpha"] == pytest.approx(18 * 12**0.5 if "rslora" in case else 18)

    @pytest.mark.parametrize(
        ("case", "why"), [("qwen3-tied-dora", "DoRA scales"), ("embedding", "changes the embedding")]
    )
    def test_what_only_merging_can_do_is_refused(self, compared: dict[str, Any], case: str, why: str) -> None:
        assert why in compared[case]["alone"]["refused"]

    def test_an_adapter_that_trains_biases_is_left_to_peft(self, compared: dict[str, Any]) -> None:
        assert compared["bias"]["refused"] == "the adapter's configuration sets bias"

    def test_infinite_weights_are_refused_and_leave_nothing(self, compared: dict[str, Any]) -> None:
        assert "NaN or infinite" in compared["infinity"]["refused"]
        assert compared["infinity"]["made"] == ["base"]

    def test_a_full_disk_leaves_nothing(self, compared: dict[str, Any]) -> None:
        assert "No space left on device" in compared["full-disk"]["refused"]
        assert compared["full-disk"]["made"] == ["base"]

    def test_most_of_torch_had_not_run_and_can_when_it_is_needed(self, compared: dict[str, Any]) -> None:
        said = compared["lean"]
        assert said["left_out"] == ["torch._meta_registrations", "torch.optim", "torch.distributions"]
        assert said["shapes_known"] == [False, True]


def test_the_converter_runs_no_code_that_a_model_names(compared: dict[str, Any]) -> None:
    """Theirs loads the tokenizers of some families with trust_remote_code."""
    said = compared["foreign-code"]
    assert said["loaded"] != "Foreign"
    assert not said["ran"]


class TestProgram:
    def test_killed_on_the_way_leaves_nothing(self, tmp_path: Path) -> None:
        make_large_model(tmp_path / "base")
        (tmp_path / "out").mkdir()
        argv = [sys.executable, "-m", "worker.export", "--base", str(tmp_path / "base"), "--type", "Q4_K_M"]
        argv += ["--out", str(tmp_path / "out" / "large.gguf"), "--encoder", "ggml"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert 0 < said["done"] < said["total"]
        assert list((tmp_path / "out").iterdir()) == []

    def test_refuses_one_type_for_two_files(self) -> None:
        argv = [
            sys.executable,
            "-m",
            "worker.export",
            "--base",
            ".",
            "--type",
            "Q8_0",
            "--out",
            "a",
            "--out",
            "b",
        ]
        answer = subprocess.run(argv, check=False, capture_output=True, text=True)
        assert answer.returncode == 2
        assert "one --out for each --type" in answer.stderr


def make_large_model(folder: Path) -> None:
    """As many weights as ggml encodes in some seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=512, hidden_size=512, intermediate_size=2048, num_hidden_layers=12,
                num_attention_heads=8, max_position_embeddings=64, dtype="bfloat16",
            )
        )  # fmt: skip
    model.to_empty(device="cpu").to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    model.save_pretrained(folder)
    write_tokenizer(folder / "tokenizer").save_pretrained(folder)
