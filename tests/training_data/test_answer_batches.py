"""How answers make batches: all of one prompt within one, in micro-batches that fit."""

from typing import Any

import pytest

from db.params.fine_tune import FineTuneParams
from training_data.answer_batches import batches_of_answers, settle_answers
from training_data.fitting import _positions
from training_data.footprint import device_memory
from training_data.hyperparameters import resolve
from training_data.model_shape import read_shape


def settled(given: dict[str, Any], longest: int = 20, context: int = 512) -> dict[str, Any]:
    params = {"rewards": ["a", "b"], "reward_weights": []}
    return settle_answers(params, given, longest=longest, context_length=context)


CHOSEN: dict[str, Any] = {
    "method": "grpo", "beta": 0.1, "tuning": "full", "bits": 16, "batch_size": 4,
    "gradient_accumulation_steps": 4, "num_generations": 8, "max_length": 512,
    "max_completion_length": 256, "gradient_checkpointing": True, "compute_dtype": "bfloat16",
}  # fmt: skip


class TestBatches:
    @pytest.mark.parametrize(
        ("given", "prompts", "fitting", "batches"),
        [
            ({}, 100, 64, (64, 1)),  # eight prompts, eight answers each
            ({}, 100, 20, (16, 4)),
            ({}, 3, 64, (24, 1)),  # no more prompts than there are
            ({}, 100, 1, (1, 64)),
            ({"effective_batch_size": 24}, 100, 10, (8, 3)),
            ({"batch_size": 3}, 100, 64, (3, 24)),  # 72 is the nearest to 64 that both divide
            ({"gradient_accumulation_steps": 6}, 100, 64, (12, 6)),
            ({"gradient_accumulation_steps": 6}, 100, 4, (4, 6)),
            ({"batch_size": 4, "gradient_accumulation_steps": 2}, 100, 1, (4, 2)),
        ],
    )
    def test_hold_all_answers_to_a_prompt(
        self, given: dict[str, Any], prompts: int, fitting: int, batches: tuple[int, int]
    ) -> None:
        chosen = {**given, "num_generations": 8}
        assert batches_of_answers(chosen, prompts=prompts, fitting=fitting) == batches
        assert batches[0] * batches[1] % 8 == 0

    @pytest.mark.parametrize(
        ("given", "answers"),
        [
            ({}, 8),
            ({"effective_batch_size": 12}, 6),
            ({"batch_size": 3, "gradient_accumulation_steps": 3}, 3),
            ({"effective_batch_size": 11}, 11),
            ({"effective_batch_size": 12, "num_generations": 4}, 4),
        ],
    )
    def test_settle_how_many_answers_there_are(self, given: dict[str, Any], answers: int) -> None:
        assert settled(given)["num_generations"] == answers


class TestAnswers:
    def test_are_as_long_as_prompts_leave_room_for(self) -> None:
        assert settled({})["max_completion_length"] == 256
        assert settled({}, longest=400)["max_completion_length"] == 128  # a quarter at least
        assert settled({"max_length": 64})["max_completion_length"] == 44
        assert settled({})["reward_weights"] == [1.0, 1.0]

    def test_come_into_all_that_is_chosen(self) -> None:
        params = FineTuneParams(
            base_model="m", training_file="file-1", name="m", method="grpo", rewards=["brevity"]
        )
        chosen = resolve(
            params.model_dump(mode="json"), parameters=4_000_000, rows=20, longest=30, context_length=512
        )
        assert chosen["max_length"] == 320  # the longest prompt and its answer
        assert chosen["effective_batch_size"] == 64
        assert chosen["total_steps"] == 3 * 16  # 20 prompts, eight a step, 16 times
        assert (chosen["beta"], chosen["temperature"]) == (0.04, 1.0)
        assert chosen["learning_rate"] == pytest.approx(3e-3 * 0.05)


class TestMemory:
    def test_counts_the_copy_and_what_writing_answers_takes(self) -> None:
        tensors = {
            "model.embed_tokens.weight": [1000, 64],
            "model.layers.0.self_attn.q_proj.weight": [64, 64],
            "model.layers.0.self_attn.k_proj.weight": [16, 64],
            "model.layers.0.mlp.up_proj.weight": [128, 64],
        }
        config = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 1000}
        shape = read_shape(config, tensors)
        parts = device_memory(shape, CHOSEN, 512).parts
        assert parts["reference"] == 4 * shape.parameters
        assert device_memory(shape, {**CHOSEN, "beta": 0}, 512).parts["reference"] == 0
        # Sixteen answers of 512 tokens: a key and a value of 16 numbers in each layer.
        written = 16 * 512 * 8 * 2 * 16 * 2
        one_at_a_time = {**CHOSEN, "batch_size": 1, "gradient_accumulation_steps": 16}
        assert device_memory(shape, one_at_a_time, 512).parts["activations"] >= written // 2
        assert parts["activations"] >= written

    def test_is_saved_by_shorter_answers_not_by_shorter_prompts(self) -> None:
        assert list(_positions("max_length", CHOSEN)) == [
            {"max_completion_length": 128, "max_length": 384},
            {"max_completion_length": 64, "max_length": 320},
        ]
