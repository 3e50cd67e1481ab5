"""Adapters of each kind, and all weights: real trainings of a micro model, and what they are merged to."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from tests.worker.steps.export_fixtures import step_of, step_settings
from tests.worker.steps.fine_tuning import (
    ALL_WEIGHTS,
    WARNINGS_OF_LIBRARIES,
    interrupt_at,
    logits_of,
    measured,
    weights_of,
)
from worker.step import BaseWeights, Step
from worker.steps import export, verify
from worker.steps.export import weights_of as exported_weights
from worker.steps.merging import Weights, write_merged

pytestmark = WARNINGS_OF_LIBRARIES

GIVEN = {"base_model": "m", "training_file": "file-1", "name": "m"}
KINDS = {
    "lora": {"lora_rank": 4, "lora_alpha": 32},
    "rslora": {"lora_rank": 4, "lora_alpha": 32, "use_rslora": True},
    "dora": {"lora_rank": 4, "lora_alpha": 32, "use_dora": True},
    "rsdora": {"lora_rank": 4, "lora_alpha": 32, "use_rslora": True, "use_dora": True},
}


def by_formula(base: Any, adapter: dict[str, Any], module: str, config: dict[str, Any]) -> Any:
    """W + s·BA, of which DoRA sets the length of each row to m. Sources: arXiv:2106.09685 for s = α/r,
    2312.03732 for s = α/√r, 2402.09353 for m."""
    a, b = (adapter[f"base_model.model.{module}.lora_{each}.weight"].float() for each in "AB")
    rank = config["r"] ** 0.5 if config["use_rslora"] else config["r"]
    whole = base.float() + b @ a * (config["lora_alpha"] / rank)
    if not config["use_dora"]:
        return whole
    magnitude = adapter[f"base_model.model.{module}.lora_magnitude_vector"].float()
    return whole * (magnitude / whole.norm(dim=1))[:, None]


def proven(folder: Path, prepared: Any, trained: Any, base: Path) -> list[dict[str, Any]]:
    """Export a training and verify it, by the real llama.cpp; what verify found of each file."""
    folders = {"prepare": prepared.folder, "train": trained.folder, "export": folder / "export"}
    own = {"params": {"name": "x", "quantizations": ["Q8_0"]}, "step_folders": folders}
    own |= {"base": BaseWeights("micro", "folder", str(base))}
    step, _ = step_of(folder / "export", step_settings(folder / "served"), **own)
    results = {"export": export.run(step)}
    settings = step_settings(folder / "served")
    step, _ = step_of(folder / "verify", settings, results=results, **own)
    files: list[dict[str, Any]] = verify.run(step)["files"]
    return files


class TestAdapters:
    @pytest.mark.parametrize("kind", KINDS)
    def test_merge_into_what_they_computed(self, fine_tune, micro_model, tmp_path, kind):
        """Each matrix by the papers' formula, and the logits of both: what is left is rounding to 16 bits."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        ran = fine_tune(bits=16, max_steps=4, learning_rate=2e-2, **KINDS[kind]).run()
        folder = ran.folder / "adapter"
        write_merged(Weights(micro_model, folder), tmp_path / "merged")
        merged, base = weights_of(tmp_path / "merged"), weights_of(micro_model)
        adapter = weights_of(folder, "adapter_model.safetensors")
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["use_rslora"], config["use_dora"]) == ("rs" in kind, "dora" in kind)
        for module in ("model.layers.0.self_attn.v_proj", "model.layers.0.mlp.down_proj"):
            expected = by_formula(base[f"{module}.weight"], adapter, module, config)
            # One rounding to bfloat16, which has 8 bits.
            assert torch.allclose(merged[f"{module}.weight"].float(), expected, rtol=2**-8, atol=1e-6)

        plain = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        untuned = logits_of(plain)
        tuned = logits_of(PeftModel.from_pretrained(plain, folder))
        found = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32))
        # What training changed is many times what rounding changes.
        assert (tuned - untuned).abs().max() > 20 * (found - tuned).abs().max()

    def test_learn_their_magnitude_on_a_rounded_base(self, fine_tune):
        ran = fine_tune(bits=4, use_dora=True, max_steps=6, warmup_steps=0).run()
        losses = measured(ran, "loss")
        assert losses[-1] < losses[0]
        adapter = weights_of(ran.folder / "adapter", "adapter_model.safetensors")
        assert any("lora_magnitude_vector" in name for name in adapter)

    def test_say_in_how_many_bits_the_base_is_loaded(self, fine_tune):
        ran = fine_tune(max_steps=1).run()
        assert ran.result["hyperparameters"]["bits"] in (4, 16)
        assert any(event.startswith("The base is loaded in") for event in ran.events())

    def test_learn_no_magnitude_on_a_base_of_8_bits(self):
        with pytest.raises(ValidationError, match="use_dora needs the base's weights"):
            FineTuneParams(**GIVEN, bits=8, use_dora=True)


class TestAllWeights:
    def test_learn_and_are_kept_as_a_model(self, fine_tune, micro_model):
        import torch

        ran = fine_tune(**ALL_WEIGHTS).run()
        losses = measured(ran, "loss")
        assert losses[-1] < losses[0]
        tuned, base = weights_of(ran.folder / "model"), weights_of(micro_model)
        assert {name: tensor.dtype for name, tensor in tuned.items()} == {
            name: tensor.dtype for name, tensor in base.items()
        }
        changed = [name for name in base if not torch.equal(base[name], tuned[name])]
        assert len(changed) > len(base) / 2
        names = {path.name for path in (ran.folder / "model").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
        assert not (ran.folder / "adapter").exists()
        assert any("weights, which are all, learn from" in event for event in ran.events())

    def test_killed_end_bit_identical(self, fine_tune):
        job = fine_tune(**ALL_WEIGHTS, max_steps=5)
        undisturbed = job.run()
        resumed = job.resumed(interrupt_at(3))
        assert resumed.of_type("progress")[0]["done"] > 0
        name = "model/model.safetensors"
        assert (resumed.folder / name).read_bytes() == (undisturbed.folder / name).read_bytes()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"bits": 4}, 'bits must be 16 with the tuning "full"'),
            ({"bits": 8}, 'bits must be 16 with the tuning "full"'),
            ({"lora_rank": 8}, "lora_rank is of an adapter"),
            ({"use_dora": True}, "use_dora is of an adapter"),
            ({"lora_bias": "all"}, "lora_bias is of an adapter"),
        ],
    )
    def test_refuse_what_is_of_an_adapter(self, given, message):
        with pytest.raises(ValidationError, match=message):
            FineTuneParams(**GIVEN, tuning="full", **given)


class TestExport:
    def test_takes_all_weights_as_they_were_left(self, steps, fine_tune):
        import torch

        job = fine_tune(**ALL_WEIGHTS, max_steps=1)
        ran = job.run()

        def run(step: Step) -> dict[str, Any]:
            write_merged(exported_weights(step), step.input.folder / "merged")
            return {"merged": str(step.input.folder / "merged")}

        earlier = {"prepare": job.prepared, "train": ran}
        merged = steps.run(run, "fine_tune", "export", earlier=earlier, **job.given).result["merged"]
        left, taken = weights_of(ran.folder / "model"), weights_of(Path(merged))
        assert left.keys() == taken.keys()
        assert all(torch.equal(tensor, taken[name]) for name, tensor in left.items())

    @pytest.mark.slow
    @pytest.mark.parametrize("given", [*KINDS.values(), {"tuning": "full"}], ids=[*KINDS, "full"])
    def test_is_proven_by_verify(self, steps, fine_tune, tmp_path, given):
        """The file that is served against the weights, through llama.cpp."""
        params = {**ALL_WEIGHTS, "tuning": "lora", "epochs": 10.0, "quantizations": ["Q8_0"], **given}
        job = fine_tune(**params)
        ran = job.run()
        [figures] = proven(tmp_path, job.prepared, ran, job.given["base"])
        assert figures["top1_agreement"] >= 0.98


class TestTrainingArgs:
    def test_are_applied_after_all_else(self, fine_tune):
        given = {"optim": "sgd", "lr_scheduler_type": "constant", "per_device_eval_batch_size": 1}
        job = fine_tune(max_steps=2, training_args=given, warmup_steps=0)
        ran = job.run()
        assert ran.result["hyperparameters"]["training_args"] == given
        assert ran.result["hyperparameters"]["lr_scheduler"] == "constant"
        rates = [message["values"]["learning_rate"] for message in ran.of_type("metrics")]
        assert rates == [5e-3, 5e-3]

    def test_that_do_not_go_together_are_refused_before_a_step(self, fine_tune):
        for given in ({"lr_scheduler_type": "reduce_lr_on_plateau"}, {"lr_scheduler_kwargs": {"no": 1}}):
            with pytest.raises(InvalidInput, match="training_args do not go together") as caught:
                fine_tune(training_args=given).run()
            assert caught.value.param == "training_args"
