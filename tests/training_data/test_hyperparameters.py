from typing import Any

import pytest

from db.params.fine_tune import FineTuneParams
from training_data.hyperparameters import AUTO, resolve
from training_data.presets import told


def fine_tune(**given: Any) -> dict[str, Any]:
    return FineTuneParams(base_model="m", training_file="file-1", name="m", **given).model_dump(mode="json")


def resolved(
    parameters: float, rows: int, *, longest: int = 200, context: int = 8192, **given: Any
) -> dict[str, Any]:
    return resolve(
        fine_tune(**given), parameters=int(parameters), rows=rows, longest=longest, context_length=context
    )


class TestTuning:
    def test_of_all_weights_has_nothing_of_an_adapter_and_smaller_steps(self):
        chosen = resolved(8e9, 5_000, tuning="full")
        assert not any(name.startswith("lora_") or name in ("use_dora", "use_rslora") for name in chosen)
        assert (chosen["bits"], chosen["learning_rate"]) == (16, pytest.approx(2e-5))

    def test_keeps_the_adapters_scale_by_rslora(self):
        """By rsLoRA, alpha is divided by the root of the rank."""
        chosen = resolved(8e9, 5_000, lora_rank=64, use_rslora=True)
        assert chosen["lora_alpha"] / 64**0.5 == 32 / 16
        assert resolved(8e9, 5_000, lora_rank=64)["lora_alpha"] == 128

    def test_takes_training_args_over_its_own(self):
        given = {"weight_decay": 0.1, "lr_scheduler_type": "linear", "optim": "adafactor"}
        chosen = resolved(8e9, 5_000, training_args=given)
        assert chosen["training_args"] == given
        assert (chosen["weight_decay"], chosen["lr_scheduler"]) == (0.1, "linear")


class TestPresets:
    def test_set_what_their_table_says(self):
        chosen = resolved(8e9, 5_000, preset="best")
        assert (chosen["lora_rank"], chosen["use_rslora"], chosen["bits"]) == (64, True, 16)
        assert resolved(8e9, 5_000, preset="fast")["epochs"] == resolved(8e9, 5_000)["epochs"] / 2
        balanced = resolved(8e9, 5_000, preset="balanced")
        assert {**balanced, "preset": None} == resolved(8e9, 5_000)

    def test_yield_to_what_is_given(self):
        chosen = resolved(8e9, 5_000, preset="best", lora_rank=8, bits=4)
        assert (chosen["lora_rank"], chosen["bits"], chosen["use_rslora"]) == (8, 4, True)
        assert resolved(8e9, 5_000, preset="fast", epochs=7.0)["epochs"] == 7

    def test_set_nothing_of_an_adapter_where_there_is_none(self):
        assert "lora_rank" not in resolved(8e9, 5_000, preset="best", tuning="full")

    def test_say_what_they_set(self):
        params = fine_tune(preset="best", lora_rank=8)
        assert told(params, resolved(8e9, 5_000, preset="best", lora_rank=8)) == (
            "The preset best sets use_rslora true, bits 16. These are given, and stay: lora_rank."
        )
        assert told(fine_tune(preset="fast"), resolved(8e9, 5_000, preset="fast")) == (
            "The preset fast sets lora_rank 8, epochs 1.5, which is 0.5 times what auto chooses."
        )
        assert told(fine_tune(), resolved(8e9, 5_000)) is None


class TestResolve:
    def test_epochs_are_what_max_steps_come_to(self):
        chosen = resolved(8e9, 160, max_steps=5)
        assert chosen["total_steps"] == 5
        assert chosen["epochs"] == 5 / (160 / chosen["effective_batch_size"])
        assert resolved(8e9, 160, max_steps=5, epochs=3.0)["epochs"] == 3

    @pytest.mark.parametrize("parameters", [1e6, 120e6, 1e9, 8e9, 14e9, 32e9, 70e9, 400e9])
    @pytest.mark.parametrize("rows", [1, 20, 300, 5_000, 1_000_000])
    def test_leaves_nothing_auto(self, parameters, rows):
        chosen = resolved(parameters, rows)
        assert chosen.pop("bits") == AUTO, "is for where the device is known"
        assert AUTO not in chosen.values()
        assert chosen["batch_size"] <= rows
        assert 0 <= chosen["warmup_steps"] <= chosen["total_steps"]

    def test_gives_an_8b_what_an_expert_would(self):
        chosen = resolved(8e9, 5_000)
        assert chosen["lora_rank"] == 16
        assert chosen["lora_alpha"] == 32
        assert chosen["learning_rate"] == 2e-4
        assert chosen["epochs"] == 3
        assert chosen["batch_size"] * chosen["gradient_accumulation_steps"] == 16
        assert chosen["gradient_checkpointing"] is True
        assert chosen["lora_target_modules"] == "all-linear"

    def test_makes_a_tiny_model_learn_by_heart(self):
        chosen = resolved(4e6, 20)
        assert chosen["epochs"] >= 30
        assert chosen["compute_dtype"] == "fp32"

    def test_keeps_what_is_given(self):
        given = {"epochs": 2.0, "batch_size": 3, "lora_rank": 8, "max_length": 77, "packing": True}
        assert resolved(8e9, 1_000, **given).items() >= given.items()

    def test_fills_up_to_the_effective_batch(self):
        assert resolved(8e9, 1_000, batch_size=4)["gradient_accumulation_steps"] == 4
        assert resolved(8e9, 1_000, gradient_accumulation_steps=8)["batch_size"] == 2

    def test_takes_smaller_micro_batches_of_long_rows(self):
        chosen = resolved(8e9, 1_000, longest=4_000)
        assert (chosen["batch_size"], chosen["gradient_accumulation_steps"]) == (2, 8)

    @pytest.mark.parametrize(
        ("longest", "context", "length"), [(50, 512, 64), (500, 512, 512), (9_000, 512, 512)]
    )
    def test_fits_max_length_to_the_rows_and_the_model(self, longest, context, length):
        assert resolved(8e9, 100, longest=longest, context=context)["max_length"] == length

    def test_counts_steps_from_max_steps_when_given(self):
        assert resolved(8e9, 1_000, max_steps=7)["total_steps"] == 7

    def test_splits_an_effective_batch_that_is_given(self):
        given = resolved(8e9, 1_000, effective_batch_size=48, longest=1_000)
        assert (given["batch_size"], given["gradient_accumulation_steps"]) == (8, 6)
        assert resolved(8e9, 1_000)["effective_batch_size"] == 16
        with pytest.raises(ValueError, match="effective_batch_size settles"):
            resolved(8e9, 1_000, effective_batch_size=48, batch_size=4)

    def test_multiplies_the_learning_rate_that_auto_chooses(self):
        assert resolved(8e9, 1_000, learning_rate_multiplier=0.5)["learning_rate"] == 1e-4
        assert resolved(8e9, 1_000, learning_rate=4e-4)["learning_rate_multiplier"] == 2
        with pytest.raises(ValueError, match="exclude each other"):
            resolved(8e9, 1_000, learning_rate_multiplier=0.5, learning_rate=1e-4)
