"""Training by preference pairs: real trainings of a micro model, whose preferences are looked at after."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from tests.worker.steps.test_resume import Interrupted, adapter, interrupt_at
from training_data.tokens import ChatTokenizer
from worker.checkpoints import list_checkpoints
from worker.steps import prepare, train
from worker.steps.method_rows import paired

PAIRS = [
    (f"Where is pot {n}?", f"In the kiln, row {n}{' of clay' * (n % 4)}.", f"I will not tell, {n}.")
    for n in range(18)
]
BITS = [4, pytest.param(16, marks=pytest.mark.slow)]
PARAMS = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "method": "dpo", "lora_rank": 4,
    "batch_size": 4, "epochs": 3.0, "learning_rate": 5e-3, "gradient_accumulation_steps": 1,
}  # fmt: skip

# Theirs, none of which a caller can do anything about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def openais(question: str, better: str, worse: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": question}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": better}],
        "non_preferred_output": [{"role": "assistant", "content": worse}],
    }


class Dpo:
    """One training by preferences that can be run, interrupted and gone on with."""

    def __init__(
        self,
        steps: Any,
        base: Path,
        data: Path,
        rows: list[Any],
        *,
        start: Path | None = None,
        **params: Any,
    ) -> None:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.steps = steps
        self.given: dict[str, Any] = {"params": {**PARAMS, **params}, "base": base, "start": start}
        self.prepared = steps.run(prepare.run, "fine_tune", "prepare", files={"file-1": data}, **self.given)

    def run(self, **options: Any) -> Any:
        earlier = {"prepare": self.prepared}
        return self.steps.run(train.run, "fine_tune", "train", earlier=earlier, **self.given, **options)

    def interrupted(self, hear: Callable[..., None]) -> list[Path]:
        """Run until `hear` ends it; gives the checkpoints that are left."""
        with pytest.raises(Interrupted):
            self.run(hear=hear)
        return list_checkpoints(self.steps.folder)


@pytest.fixture
def dpo(steps, micro_model, tmp_path):
    rows = [openais(*pair) for pair in PAIRS]
    return lambda rows=rows, **params: Dpo(steps, micro_model, tmp_path / "rows.jsonl", rows, **params)


def log_probability(model: Any, tokenizer: ChatTokenizer, question: str, answer: str) -> float:
    import torch

    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    chat = tokenizer.encode_chat(turns)
    with torch.no_grad():
        logits = model(torch.tensor([chat.ids])).logits[0, :-1].float().log_softmax(-1)
    mine = zip(logits, chat.ids[1:], chat.answer_mask[1:], strict=True)
    return sum(float(row[token]) for row, token, learnt in mine if learnt)


class TestTraining:
    @pytest.mark.parametrize("bits", BITS)
    def test_the_preferred_answers_win_afterwards(self, dpo, micro_model, bits):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        ran = dpo(bits=bits).run()
        measured = [each["values"] for each in ran.of_type("metrics")]
        assert measured[0]["reward_margin"] == pytest.approx(0, abs=1e-3)  # the reference is the base itself
        assert measured[-1]["reward_margin"] > 0.1
        assert measured[-1]["reward_accuracy"] == 1.0
        assert measured[-1]["loss"] < measured[0]["loss"] == pytest.approx(0.693, abs=1e-2)
        assert ran.result["trained_tokens"] > 0
        base = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        tokenizer = ChatTokenizer(micro_model)

        def leads() -> list[float]:
            return [
                log_probability(model, tokenizer, question, better)
                - log_probability(model, tokenizer, question, worse)
                for question, better, worse in PAIRS
            ]

        model = base
        before = leads()
        model = PeftModel.from_pretrained(base, ran.folder / "adapter")
        after = leads()
        assert all(new > old + 1 for old, new in zip(before, after, strict=True))
        # What trl calls the margin is beta times what the lead has grown by.
        grown = sum(new - old for old, new in zip(before, after, strict=True)) / len(PAIRS)
        assert 0.1 * grown == pytest.approx(measured[-1]["reward_margin"], rel=0.5)

    def test_evaluates_and_writes_what_was_measured(self, dpo):
        ran = dpo(train_size=0.6, eval_steps=1, max_steps=2).run()
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
    def test_a_killed_one_ends_bit_identical(self, dpo, monkeypatch, bits):
        monkeypatch.setattr("worker.steps.training_progress.SECONDS_BETWEEN_PROGRESS", 0)
        job = dpo(bits=bits, batch_size=2, gradient_accumulation_steps=2, save_steps=2, train_size=0.9)
        undisturbed = job.run()
        with pytest.raises(Interrupted):
            job.run(hear=interrupt_at(5))
        resumed = job.run(resume_from=list_checkpoints(job.steps.folder))
        assert resumed.of_type("progress")[0]["done"] == 4
        assert adapter(resumed) == adapter(undisturbed)
        assert resumed.result["trained_tokens"] == undisturbed.result["trained_tokens"]
        assert resumed.result["eval_loss"] == undisturbed.result["eval_loss"]

    def test_less_memory_learns_the_same(self, dpo):
        """Accumulated batches sum to one of all pairs: up to the order of float32 sums."""
        job = dpo(max_steps=3)
        losses = [
            [each["values"]["loss"] for each in job.run(adjustments=less).of_type("metrics")]
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

    def test_what_is_cut_or_left_out_is_told(self, dpo):
        rows = [openais("Who?", "She did.", "He " * 80), openais("clay " * 80, "Lost.", "Gone.")]
        job = dpo(rows=rows, max_length=40, batch_size=1, max_steps=1)
        assert any("2 rows are longer than max_length 40" in event for event in job.prepared.events("warn"))
        assert any("1 rows of train.jsonl have no answer left" in event for event in job.run().events("warn"))

    def test_what_no_pair_is_made_of_is_told(self, dpo):
        [told] = [event for event in dpo().prepared.events("warn") if "not used" in event]
        assert "input.tools" in told

    def test_of_a_file_without_pairs_is_refused(self, dpo):
        with pytest.raises(InvalidInput, match="dpo learns from pairs of answers") as caught:
            dpo(rows=[{"prompt": "a", "completion": "b"}])
        assert caught.value.param == "training_file"
