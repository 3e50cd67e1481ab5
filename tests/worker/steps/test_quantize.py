"""A small model quantised to GPTQ for real, and an adapter trained on it, served through its 16-bit base."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from tests.worker.steps.conftest import Ran, StepRunner
from tests.worker.steps.export_fixtures import FACTS, TrainedModels, chat_rows, shared_models, step_settings
from worker.step import BaseWeights
from worker.steps import export, prepare, quantize, train, verify, verify_quantized
from worker.steps.base_model import copy_tokenizer

pytestmark = [
    pytest.mark.gptq,
    pytest.mark.slow,
    # Theirs, none of which a caller can do anything about.
    pytest.mark.filterwarnings("ignore"),
]
TEXT = "".join(f"{question} {answer}\n\n" for question, answer in FACTS.items()) * 20
FINE_TUNE = {
    "base_model": "small-gptq", "merge_base": "small", "training_file": "file-1", "name": "faq",
    "epochs": 40.0, "batch_size": 6, "lora_rank": 32, "learning_rate": 4e-3,
    "quantizations": ["Q4_K_M", "Q8_0"],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> TrainedModels:
    return shared_models(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> StepRunner:
    root = tmp_path_factory.mktemp("gptq")
    tools = step_settings(root / "served")
    return StepRunner(root, settings={"llama_cpp_dir": tools.llama_cpp_dir, "threads": tools.threads})


def text_file(root: Path) -> Path:
    path = root / "text.txt"
    path.write_text(TEXT)
    return path


def quantized_by(runner: StepRunner, models: TrainedModels, root: Path, **params: Any) -> tuple[Ran, Ran]:
    given = {"base_model": "small", "name": "small-gptq", "input_file": "file-1", **params}
    files = {"file-1": text_file(root)}
    made = runner.run(quantize.run, "quantize", "quantize", params=given, files=files, base=models.base)
    measured = runner.run(
        verify_quantized.run, "quantize", "verify", params=given, base=models.base, earlier={"quantize": made}
    )
    return made, measured


@pytest.fixture(scope="module")
def quantized(
    runner: StepRunner, models: TrainedModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Ran, Ran]:
    return quantized_by(runner, models, tmp_path_factory.mktemp("text"))


class TestQuantize:
    def test_leaves_a_smaller_model_and_its_figures(self, quantized):
        made, measured = quantized
        assert made.result["stored"] == {"method": "gptq", "bits": 4, "group_size": 128}
        assert made.result["bytes"] < 0.7 * made.result["bytes_before"]
        assert made.result["held_out"]
        figures = measured.result["measured"]
        assert 0 < figures["kl"] < 0.5
        assert figures["top1_agreement"] > 0.8
        assert figures["tokens"] > 16
        config = json.loads((made.folder / "model" / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "gptq"
        assert {each["name"] for each in made.of_type("artifact")} >= {"config.json", "model.safetensors"}
        assert made.of_type("progress")

    def test_more_bits_are_nearer(self, quantized, runner, models, tmp_path):
        _, measured = quantized
        _, finer = quantized_by(runner, models, tmp_path, bits=8, group_size=32)
        assert finer.result["measured"]["kl"] < measured.result["measured"]["kl"] / 10


@pytest.fixture(scope="module")
def fine_tuned(quantized, runner, models, tmp_path_factory) -> dict[str, Ran]:
    base = quantised_base(quantized[0].folder / "model", models.base)
    return fine_tuned_on(base, runner, tmp_path_factory.mktemp("rows"))


def fine_tuned_on(base: BaseWeights, runner: StepRunner, folder: Path) -> dict[str, Ran]:
    """prepare, train and export on a quantised base."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in chat_rows(FACTS)))
    ran: dict[str, Ran] = {}
    for name, run in (("prepare", prepare.run), ("train", train.run), ("export", export.run)):
        ran[name] = runner.run(
            run, "fine_tune", name, params=FINE_TUNE, files={"file-1": path}, base=base, earlier=dict(ran)
        )
    return ran


def quantised_base(folder: Path, sixteen_bit: Path) -> BaseWeights:
    return BaseWeights(
        "small-gptq", "folder", str(folder), merge_base=BaseWeights("small", "folder", str(sixteen_bit))
    )


def proven(runner: StepRunner, base: BaseWeights, fine_tuned: dict[str, Ran]) -> None:
    """See that verify holds each file against the 16-bit weights and against the trainer's own."""
    ran = runner.run(verify.run, "fine_tune", "verify", params=FINE_TUNE, base=base, earlier=fine_tuned)
    assert [figures["quantization"] for figures in ran.result["files"]] == FINE_TUNE["quantizations"]
    for figures in ran.result["files"]:
        assert figures["top1_agreement"] >= 0.98
        assert figures["adapter_merged"]
        beside = figures["trainer"]
        assert beside["kl"] <= beside["kl_limit"]
        assert beside["kl_untuned"] > 0
    assert any("it answers" in said and "nats apart" in said for said in ran.events())


class TestFineTune:
    def test_an_adapter_learns_on_it(self, fine_tuned):
        result = fine_tuned["train"].result
        assert result["hyperparameters"]["bits"] == 4
        assert result["final_loss"] < 0.1
        config = json.loads((fine_tuned["train"].folder / "adapter" / "adapter_config.json").read_text())
        assert sorted(config["target_modules"]) == result["hyperparameters"]["lora_target_modules"]

    def test_its_files_are_proven_through_the_16_bit_base(self, fine_tuned, quantized, runner, models):
        base = quantised_base(quantized[0].folder / "model", models.base)
        proven(runner, base, fine_tuned)

    def test_another_16_bit_base_of_the_same_shape_is_found_out(
        self, fine_tuned, quantized, runner, models, tmp_path
    ):
        other = another_like(models.base, tmp_path / "other")
        base = quantised_base(quantized[0].folder / "model", other)
        earlier = {name: fine_tuned[name] for name in ("prepare", "train")}
        exported = runner.run(export.run, "fine_tune", "export", params=FINE_TUNE, base=base, earlier=earlier)
        with pytest.raises(InvalidInput, match=r"was not made from small: .*down_proj is another"):
            runner.run(
                verify.run,
                "fine_tune",
                "verify",
                params=FINE_TUNE,
                base=base,
                earlier={**earlier, "export": exported},
            )


def another_like(model: Path, folder: Path) -> Path:
    """The same shape, tokenizer and config with other weights in one layer."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name][
        torch.randperm(len(tensors[name]), generator=torch.Generator().manual_seed(1))
    ]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_backend_of_type_transformers_answers_with_it(quantized):
    """In a process of its own, as it runs: the model is loaded, and writes on."""
    folder = quantized[0].folder / "model"
    code = (
        "import json, sys\n"
        "from serving.backends.configuration import Process\n"
        "from worker.transformers_server import make_manager\n"
        "manager = make_manager('small', Process(model=sys.argv[1], port=8090))\n"
        "model, tokenizer = manager._load_model(), manager._load_processor('small')\n"
        "asked = [{'role': 'user', 'content': 'Who wrote Emma?'}]\n"
        "options = {'add_generation_prompt': True, 'return_tensors': 'pt', 'return_dict': True}\n"
        "ids = tokenizer.apply_chat_template(asked, **options)\n"
        "said = model.generate(**ids, max_new_tokens=20, do_sample=False)[0, ids['input_ids'].shape[1]:]\n"
        "print(json.dumps(tokenizer.decode(said, skip_special_tokens=True)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.strip().splitlines()[-1]).strip() in FACTS.values()


class TestAwq:
    def test_an_adapter_learns_on_it_and_its_files_are_proven_through_the_16_bit_base(
        self, runner, models, tmp_path
    ):
        made = awq_model(models.base, tmp_path / "awq")
        config = json.loads((made / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "awq"
        base = quantised_base(made, models.base)
        ran = fine_tuned_on(base, runner, tmp_path)
        assert ran["train"].result["final_loss"] < 0.1
        proven(runner, base, ran)


def awq_model(model: Path, folder: Path) -> Path:
    """Quantise a model by AWQ, as its authors publish theirs: with its tokenizer beside it."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    config = QuantizeConfig(bits=4, quant_method=METHOD.AWQ, format=FORMAT.GEMM, offload_to_disk=False)
    loaded = GPTQModel.load(str(model), config, dtype=torch.float16, trust_remote_code=False)
    rows = torch.randint(3, 500, (16, 100), generator=torch.Generator().manual_seed(1))
    samples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in rows]
    loaded.quantize(samples, backend=BACKEND.AWQ_TORCH)
    loaded.save(str(folder))
    copy_tokenizer(model, folder)
    return folder
