"""Trainings that go on from earlier ones: real ones of a micro model."""

import json
from pathlib import Path
from typing import Any

import pytest

from db.source_files import ATTEMPT_MANIFEST
from db.sources import Source, hold
from tests.worker.steps.fine_tuning import (
    ALL_WEIGHTS,
    WARNINGS_OF_LIBRARIES,
    FineTune,
    adapter,
    interrupt_at,
    logits_of,
    measured,
    weights_of,
)
from tests.worker.steps.test_export import held
from worker.run_step import write_manifest

pytestmark = WARNINGS_OF_LIBRARIES


def start_of(ran: Any, folder: Path) -> Path:
    """What a job that goes on from it holds."""
    inner = "adapter" if (ran.folder / "adapter").is_dir() else "model"
    write_manifest(ran.folder)
    files = held(ran.folder, ATTEMPT_MANIFEST, **{f"{inner}/": "trained/"})
    hold(Source({"step_number": None}, files), folder)
    return folder


@pytest.fixture
def earlier(steps, micro_model, tmp_path):
    """Trains answers, and gives what a further job starts from."""

    def run(**params: Any) -> Path:
        given = {"bits": 16, "max_steps": 4, **params}
        job = FineTune(steps, micro_model, tmp_path / "earlier.csv", **given)
        return start_of(job.run(), tmp_path / "job" / "start")

    return run


class TestAnswers:
    @pytest.mark.parametrize("bits", [4, 16])
    def test_go_on_with_the_adapter_as_it_is(self, steps, earlier, micro_model, tmp_path, bits):
        start = earlier(use_rslora=True, lora_rank=3)
        given = {"bits": bits, "lora_rank": "auto", "max_steps": 1, "learning_rate": 1e-9, "warmup_steps": 0}
        job = FineTune(steps, micro_model, tmp_path / "rows.csv", start=start, start_from="faq", **given)
        ran = job.run()
        assert (ran.result["hyperparameters"]["lora_rank"], ran.result["hyperparameters"]["use_rslora"]) == (
            3,
            True,
        )
        before = weights_of(start / "trained", "adapter_model.safetensors")
        after = weights_of(ran.folder / "adapter", "adapter_model.safetensors")
        assert before.keys() == after.keys()
        # A step this small moves no weight by more than itself: nothing else happened to them.
        assert all((tensor - after[name]).abs().max() < 1e-8 for name, tensor in before.items())
        assert any(event.startswith("Starting from faq: its adapter") for event in job.prepared.events())

    def test_of_all_weights_merge_the_adapter_first(self, steps, earlier, micro_model, tmp_path):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        start = earlier(learning_rate=2e-2)
        given = {**ALL_WEIGHTS, "max_steps": 1, "learning_rate": 1e-9, "warmup_steps": 0}
        ran = FineTune(
            steps, micro_model, tmp_path / "rows.csv", start=start, start_from="faq", **given
        ).run()
        plain = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        untuned = logits_of(plain)
        expected = logits_of(PeftModel.from_pretrained(plain, start / "trained"))
        found = logits_of(AutoModelForCausalLM.from_pretrained(ran.folder / "model", dtype=torch.float32))
        assert (found - expected).abs().max() < 0.05 * (expected - untuned).abs().max()


class TestPreferences:
    @pytest.fixture
    def preferring(self, by_pairs):
        given = {"start_from": "faq", "lora_rank": "auto", "bits": 4, "train_size": 0.9}
        return lambda start, **params: by_pairs(start=start, **{**given, **params})

    @pytest.mark.parametrize("bits", [4, 16])
    def test_are_compared_with_what_the_training_began_with(self, earlier, preferring, bits):
        """At the first step nothing has moved from the reference, so no answer is rewarded: the loss is ln 2.
        The raw base would reward what the earlier training taught."""
        ran = preferring(earlier(learning_rate=2e-2), bits=bits, max_steps=2, warmup_steps=0).run()
        first = ran.of_type("metrics")[0]["values"]
        assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
        assert first["reward_margin"] == pytest.approx(0, abs=1e-4)
        assert measured(ran, "loss")[-1] < first["loss"] - 1e-3
        names = {path.name for path in (ran.folder / ran.result["best_checkpoint"]).iterdir()}
        assert "ref" not in names
        assert "ref" not in {path.name for path in (ran.folder / "adapter").iterdir()}

    def test_killed_end_bit_identical(self, earlier, preferring):
        job = preferring(earlier(), save_steps=2, max_steps=5, batch_size=2)
        undisturbed = job.run()
        resumed = job.resumed(interrupt_at(3))
        assert resumed.of_type("progress")[0]["done"] > 0
        assert adapter(resumed) == adapter(undisturbed)

    def test_of_all_weights_are_compared_with_the_base(self, preferring, earlier):
        given = {**ALL_WEIGHTS, "bits": "auto", "max_steps": 2, "warmup_steps": 0, "learning_rate": 1e-3}
        ran = preferring(earlier(learning_rate=2e-2), **given).run()
        assert measured(ran, "loss")[0] == pytest.approx(0.6931, abs=1e-4)
        assert measured(ran, "loss")[-1] < measured(ran, "loss")[0] - 1e-3
        assert json.loads((ran.folder / "model" / "config.json").read_text())["dtype"] == "bfloat16"
