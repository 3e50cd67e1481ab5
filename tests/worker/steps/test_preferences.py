"""Training by preference pairs: real trainings of a micro model, whose preferences are looked at after."""

import csv

import pytest

from db.errors import InvalidInput
from tests.worker.steps.fine_tuning import (
    PAIRS,
    WARNINGS_OF_LIBRARIES,
    adapter,
    interrupt_at,
    leads,
    measured,
    openais,
)
from training_data.tokens import ChatTokenizer
from worker.steps.method_rows import paired

BITS = [4, pytest.param(16, marks=pytest.mark.slow)]

pytestmark = WARNINGS_OF_LIBRARIES


class TestTraining:
    @pytest.mark.parametrize("bits", BITS)
    def test_the_preferred_answers_win_afterwards(self, by_pairs, micro_model, bits):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        ran = by_pairs(bits=bits).run()
        first, *_, last = [each["values"] for each in ran.of_type("metrics")]
        assert first["reward_margin"] == pytest.approx(0, abs=1e-3)  # the reference is the base itself
        assert last["reward_margin"] > 0.1
        assert last["reward_accuracy"] == 1.0
        assert last["loss"] < first["loss"] == pytest.approx(0.693, abs=1e-2)
        assert ran.result["trained_tokens"] > 0
        base = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        tokenizer = ChatTokenizer(micro_model)
        before = leads(base, tokenizer)
        after = leads(PeftModel.from_pretrained(base, ran.folder / "adapter"), tokenizer)
        assert all(new > old + 1 for old, new in zip(before, after, strict=True))
        # What trl calls the margin is beta times what the lead has grown by.
        grown = sum(new - old for old, new in zip(before, after, strict=True)) / len(PAIRS)
        assert 0.1 * grown == pytest.approx(last["reward_margin"], rel=0.5)

    def test_evaluates_and_writes_what_was_measured(self, by_pairs):
        ran = by_pairs(train_size=0.6, eval_steps=1, max_steps=2).run()
        [message] = [each for each in ran.of_type("artifact") if each["purpose"] is not None]
        rows = list(csv.DictReader((ran.folder / message["path"]).open(newline="")))
        assert list(rows[0])[5:] == [
            "train_reward_accuracy", "train_reward_margin", "valid_reward_accuracy", "valid_reward_margin",
        ]  # fmt: skip
        assert all(row[name] for row in rows for name in ("valid_loss", "valid_reward_margin"))
        [checkpoint] = [each for each in ran.of_type("checkpoint") if each["step_number"] == 2]
        assert {"loss", "reward_margin", "eval_loss", "eval_reward_accuracy"} <= checkpoint["metrics"].keys()

    @pytest.mark.slow
    @pytest.mark.parametrize("bits", [4, 16])
    def test_a_killed_one_ends_bit_identical(self, by_pairs, bits):
        job = by_pairs(bits=bits, batch_size=2, gradient_accumulation_steps=2, save_steps=2, train_size=0.9)
        undisturbed = job.run()
        resumed = job.resumed(interrupt_at(5))
        assert resumed.of_type("progress")[0]["done"] == 4
        assert adapter(resumed) == adapter(undisturbed)
        assert resumed.result["trained_tokens"] == undisturbed.result["trained_tokens"]
        assert resumed.result["eval_loss"] == undisturbed.result["eval_loss"]

    def test_less_memory_learns_the_same(self, by_pairs):
        """Accumulated batches sum to one of all pairs: up to the order of float32 sums."""
        job = by_pairs(max_steps=3)
        losses = [
            measured(job.run(adjustments=less), "loss")
            for less in ({}, {"batch_size": 2, "gradient_accumulation_steps": 2})
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


class TestRows:
    def test_only_the_answers_are_compared(self, micro_model):
        tokenizer = ChatTokenizer(micro_model)
        before = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "never learnt"},
            {"role": "user", "content": "b"},
        ]
        chats = [
            tokenizer.encode_chat([*before, {"role": "assistant", "content": answer}])
            for answer in ("The best.", "The worst.")
        ]
        row = paired(chats, {"max_length": 1000})
        assert row["prompt_ids"].tolist() == tokenizer.encode_prompt(before)
        assert tokenizer.tokenizer.decode(row["chosen_ids"], skip_special_tokens=False).startswith(
            "The best."
        )
        assert chats[0].ids[len(row["prompt_ids"]) :][: len(row["chosen_ids"])] == row["chosen_ids"].tolist()
        assert all(chats[0].answer_mask[len(row["prompt_ids"]) :][: len(row["chosen_ids"])])
        assert not any(chats[0].answer_mask[len(row["prompt_ids"]) + len(row["chosen_ids"]) :])

    def test_what_is_cut_or_left_out_is_told(self, by_pairs):
        rows = [openais("Who?", "She did.", "He " * 80), openais("clay " * 80, "Lost.", "Gone.")]
        job = by_pairs(rows, max_length=40, batch_size=1, max_steps=1)
        assert any("2 rows are longer than max_length 40" in event for event in job.prepared.events("warn"))
        assert any("1 rows of train.jsonl have no answer left" in event for event in job.run().events("warn"))

    def test_what_no_pair_is_made_of_is_told(self, by_pairs):
        [told] = [event for event in by_pairs().prepared.events("warn") if "not used" in event]
        assert "input.tools" in told

    def test_of_a_file_without_pairs_is_refused(self, by_pairs):
        with pytest.raises(InvalidInput, match="dpo learns from pairs of answers") as caught:
            by_pairs([{"prompt": "a", "completion": "b"}])
        assert caught.value.param == "training_file"
