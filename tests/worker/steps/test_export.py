import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from db.errors import InvalidInput, StepFailed
from db.source_files import ATTEMPT_MANIFEST, CHECKPOINT_MANIFEST
from db.sources import Held, Source, hold
from serving.llama_cpp import require_tools
from tests.serving.random_gguf import write_random_gguf
from tests.worker.steps.conftest import MICRO, StepRunner
from tests.worker.steps.export_fixtures import (
    Exported,
    TrainedModels,
    base_weights,
    shared_models,
    step_of,
    step_settings,
    write_rows,
)
from worker.run_step import write_manifest
from worker.steps import export, pretrain, verify
from worker.steps.gguf_files import quantize
from worker.steps.merging import merged_model
from worker.steps.programs import run_program

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


class TestMerge:
    def test_equals_fp32_arithmetic_rounded_once_to_bfloat16(self, models: TrainedModels) -> None:
        import torch
        from safetensors.torch import load_file

        base = load_file(models.base / "model.safetensors")
        adapter = load_file(models.adapter / "adapter_model.safetensors")
        merged = merged_model(models.base, models.adapter).state_dict()
        config = json.loads((models.adapter / "adapter_config.json").read_text())
        for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
            a = adapter[f"base_model.model.{name}.lora_A.weight"].float()
            b = adapter[f"base_model.model.{name}.lora_B.weight"].float()
            delta = (b @ a) * (config["lora_alpha"] / config["r"])
            expected = (base[f"{name}.weight"].float() + delta).to(torch.bfloat16)
            assert merged[f"{name}.weight"].dtype == torch.bfloat16
            assert torch.equal(merged[f"{name}.weight"], expected)

    def test_leaves_what_has_no_adapter_as_it_was(self, models: TrainedModels) -> None:
        import torch
        from safetensors.torch import load_file

        base = load_file(models.base / "model.safetensors")
        merged = merged_model(models.base, models.adapter).state_dict()
        assert base.keys() == merged.keys()
        assert torch.equal(base["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])


class TestExport:
    def test_makes_each_quantization_and_declares_it(self, exported: Exported) -> None:
        rows = exported.result["files"]
        assert [row["quantization"] for row in rows] == ["Q4_K_M", "Q8_0"]
        for row in rows:
            assert (exported.folders["export"] / row["path"]).stat().st_size == row["bytes"]
        declared = [said["name"] for said in exported.said if said["type"] == "artifact"]
        assert declared == [row["path"] for row in rows]

    def test_writes_nothing_that_nobody_asked_for(self, exported: Exported) -> None:
        names = {path.name for path in exported.folders["export"].iterdir()}
        assert names == {"faq-Q4_K_M.gguf", "faq-Q8_0.gguf"}
        assert exported.result["full"] is None

    def test_embeds_the_template_and_the_pre_tokenizer(self, exported: Exported) -> None:
        reader = GGUFReader(exported.file("Q4_K_M"))
        template = reader.get_field("tokenizer.chat_template")
        pre = reader.get_field("tokenizer.ggml.pre")
        assert template is not None
        assert template.contents() == exported.result["chat_template"]
        assert pre is not None
        assert pre.contents() == "qwen2"
        assert "generation %" not in exported.result["chat_template"]

    def test_tells_sizes_times_and_the_model(self, exported: Exported) -> None:
        events = [said for said in exported.said if said["type"] == "event"]
        quantised = [event["data"] for event in events if "Quantised" in event["message"]]
        assert [event["quantization"] for event in quantised] == ["Q4_K_M", "Q8_0"]
        assert all(event["bytes"] > 0 and event["seconds"] >= 0 for event in quantised)
        assert exported.result["architecture"] == "LlamaForCausalLM"
        assert exported.result["context_length"] == 256

    def test_pretrained_model_is_taken_as_it_is_and_keeps_its_16_bit_file(
        self, models: TrainedModels, tmp_path: Path
    ) -> None:
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "model").symlink_to(models.base)
        step, _ = step_of(
            tmp_path / "export",
            step_settings(tmp_path / "served"),
            kind="pretrain",
            params={"name": "my-tiny", "quantizations": ["Q8_0"]},
            step_folders={"train": tmp_path / "train"},
        )
        result = export.run(step)
        assert result["full"] == "my-tiny-BF16.gguf"
        assert (tmp_path / "export" / result["full"]).is_file()
        assert [row["path"] for row in result["files"]] == ["my-tiny-Q8_0.gguf"]

    def test_says_why_three_steps_are_needed_and_makes_the_same_file(
        self, models: TrainedModels, exported: Exported, tmp_path: Path
    ) -> None:
        """An adapter_config that says something about biases is for peft itself."""
        train = Path(shutil.copytree(models.adapter, tmp_path / "train" / "adapter"))
        config = json.loads((train / "adapter_config.json").read_text())
        (train / "adapter_config.json").write_text(json.dumps({**config, "bias": "all"}))
        step, said = step_of(
            tmp_path / "export",
            step_settings(tmp_path / "served"),
            params={"name": "faq", "quantizations": ["Q8_0"]},
            base=base_weights(models.base),
            step_folders={"train": tmp_path / "train"},
        )
        export.run(step)
        [why] = [each["message"] for each in said if each.get("level") == "warn"]
        assert why.startswith("Not in one pass, since the adapter's configuration sets bias: ")
        assert [path.name for path in (tmp_path / "export").iterdir()] == ["faq-Q8_0.gguf"]
        assert (tmp_path / "export" / "faq-Q8_0.gguf").read_bytes() == exported.file("Q8_0").read_bytes()


class TestQuantize:
    def test_says_which_tensors_did_not_fit(self, tmp_path: Path) -> None:
        """Rows of 32 and 64, where a K-quant wants 256."""
        write_random_gguf(tmp_path / "full.gguf")
        step, _ = step_of(tmp_path / "work", step_settings(tmp_path / "served"))
        tools = require_tools(step.input.settings)
        said = quantize(step, tools, tmp_path / "full.gguf", tmp_path / "q4.gguf", "Q4_K_M")
        assert sum(said.fallbacks.values()) >= 7
        assert set(said.fallbacks) <= {"Q5_0", "Q8_0", "Q5_1"}


class TestRunProgram:
    def test_failure_carries_the_end_of_the_output(self) -> None:
        argv = ["sh", "-c", "echo first; echo 'no such tensor' >&2; exit 3"]
        with pytest.raises(StepFailed, match="no such tensor") as failure:
            run_program(argv, "converter", lambda line: None)
        assert failure.value.exit_code == 3
        assert failure.value.stderr == "first\nno such tensor"

    def test_failure_shows_in_the_attempts_log(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(StepFailed):
            run_program(["sh", "-c", "echo 'no such tensor'; exit 3"], "converter", lambda line: None)
        assert "no such tensor" in capfd.readouterr().err

    def test_death_by_signal_is_told_as_one(self) -> None:
        with pytest.raises(StepFailed) as failure:
            run_program(["sh", "-c", "kill -9 $$"], "converter", lambda line: None)
        assert (failure.value.exit_code, failure.value.signal) == (None, 9)


def held(folder: Path, manifest: str, **names: str) -> list[Held]:
    """The files of `folder` that begin with a key of `names`, under the name given there."""
    listed = json.loads((folder / manifest).read_text())["files"]
    return [
        Held(folder / path, path.replace(begin, called, 1), entry["bytes"], entry["sha256"])
        for begin, called in names.items()
        for path, entry in listed.items()
        if path.startswith(begin)
    ]


def run_export(folder: Path, source: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export and verify what `source` holds; gives both results."""
    given = {"kind": "export", "source": source, "params": {"name": "early", "quantizations": ["Q8_0"]}}
    given |= changes
    step, _ = step_of(folder / "export", step_settings(folder / "served"), **given)
    exported = export.run(step)
    given |= {"step_folders": {"export": folder / "export"}, "results": {"export": exported}}
    step, _ = step_of(folder / "verify", step_settings(folder / "served"), **given)
    return exported, verify.run(step)


class TestOfACheckpoint:
    @pytest.fixture
    def source(self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        models = shared_models(tmp_path_factory.getbasetemp())
        training = tmp_path / "training"
        training.mkdir()
        write_rows(training / "test.jsonl", models.rows)
        for path in models.adapter.iterdir():
            (training / path.name).write_bytes(path.read_bytes())
        write_manifest(training)
        files = held(training, ATTEMPT_MANIFEST, adapter_="trained/adapter_", token="trained/token")
        files += held(training, ATTEMPT_MANIFEST, chat="trained/chat", test="rows/test")
        hold(Source({"step_number": 20}, files), tmp_path / "job" / "source")
        return tmp_path / "job" / "source"

    def test_is_merged_and_held_against_the_held_out_rows(
        self, tmp_path: Path, source: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        base = base_weights(shared_models(tmp_path_factory.getbasetemp()).base)
        exported, verified = run_export(tmp_path, source, base=base)
        assert exported["source"] == {"step_number": 20}
        assert (tmp_path / "export" / "early-Q8_0.gguf").is_file()
        assert exported["full"] is None
        [figures] = verified["files"]
        assert figures["split"] == "test"
        assert figures["answers_by_heart"] == figures["answers_ended"] == figures["rows"] == 6
        assert figures["kl"] <= figures["kl_limit"]

    def test_that_is_damaged_is_refused_before_anything_is_made(self, tmp_path: Path, source: Path) -> None:
        weights = source / "trained" / "adapter_model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.unlink()
        weights.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"adapter_model\.safetensors has another sha256") as refusal:
            run_export(tmp_path, source)
        assert refusal.value.code == "source_broken"
        assert not list((tmp_path / "export").iterdir())


def test_a_checkpoint_of_a_model_from_scratch_is_rounded_to_16_bits(
    steps: StepRunner, tmp_path: Path, potters_text: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    params = {"name": "a", "training_file": "file-1", **MICRO, "save_steps": 4}
    ran = steps.run(pretrain.run, "pretrain", "train", params=params, files={"file-1": potters_text})
    checkpoint = ran.folder / "checkpoints" / "checkpoint-4"
    files = held(checkpoint, CHECKPOINT_MANIFEST, model="trained/model", config="trained/config")
    files += held(checkpoint, CHECKPOINT_MANIFEST, **{"tokenizer/": "trained/"})
    hold(Source({}, files), tmp_path / "job" / "source")
    (tmp_path / "job" / "source" / "text").write_bytes(potters_text.read_bytes())
    exported, verified = run_export(tmp_path, tmp_path / "job" / "source")
    trained = load_file(checkpoint / "model.safetensors")
    assert exported["full"] == "early-BF16.gguf"
    reader = GGUFReader(tmp_path / "export" / "early-BF16.gguf")
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    for name, theirs in (("embed_tokens", "token_embd"), ("layers.0.mlp.up_proj", "blk.0.ffn_up")):
        tensor = trained[f"model.{name}.weight"]
        assert tensor.dtype == torch.float32
        assert torch.equal(stored[f"{theirs}.weight"].view(torch.bfloat16), tensor.to(torch.bfloat16))
    assert verified["split"] == "text"
    # Nobody starts from it, so it is no base whose cost is kept.
    assert not (tmp_path / "cache" / "base-gguf").exists()
