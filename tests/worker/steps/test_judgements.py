"""KTO and ORPO: real trainings of a micro model, whose preferences are looked at after."""

from typing import Any

import pytest
from pydantic import ValidationError

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from tests.worker.steps.fine_tuning import (
    BY_PAIRS,
    PAIRS,
    WARNINGS_OF_LIBRARIES,
    adapter,
    interrupt_at,
    leads,
    openais,
)
from training_data.tokens import ChatTokenizer
from worker.steps.method_rows import judged

JUDGED = [
    {"prompt": question, "completion": answer, "label": label}
    for question, better, worse in PAIRS
    for answer, label in ((better, True), (worse, False))
]
ROWS: dict[str, list[Any]] = {"orpo": [openais(*pair) for pair in PAIRS], "kto": JUDGED}

pytestmark = WARNINGS_OF_LIBRARIES


@pytest.fixture
def job(by_pairs):
    return lambda method, rows=None, **given: by_pairs(
        rows or ROWS[method], **{"method": method, "bits": 16, **given}
    )


class TestTraining:
    @pytest.mark.parametrize("method", ["orpo", "kto"])
    def test_the_good_answers_win_afterwards(self, job, micro_model, method):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        ran = job(method, train_size=0.8).run()
        measured = [each["values"] for each in ran.of_type("metrics") if "loss" in each["values"]]
        # A batch of kto's may be of one label, and then has no margin.
        margins = [each["reward_margin"] for each in measured if "reward_margin" in each]
        assert margins[-1] > margins[0]
        assert measured[-1]["loss"] < measured[0]["loss"]
        assert ran.result["trained_tokens"] > 0
        assert ran.result["eval_loss"] < measured[0]["loss"]
        base = AutoModelForCausalLM.from_pretrained(micro_model, dtype=torch.float32)
        tokenizer = ChatTokenizer(micro_model)
        before = leads(base, tokenizer)
        after = leads(PeftModel.from_pretrained(base, ran.folder / "adapter"), tokenizer)
        grown = [new - old for old, new in zip(before, after, strict=True)]
        assert sum(grown) / len(grown) > 1
        assert sum(each > 0 for each in grown) >= 0.9 * len(grown)

    @pytest.mark.parametrize("method", ["orpo", "kto"])
    def test_a_killed_one_ends_bit_identical(self, job, method):
        training = job(
            method, batch_size=2, gradient_accumulation_steps=2, save_steps=2, max_steps=7, train_size=0.9
        )
        undisturbed = training.run()
        resumed = training.resumed(interrupt_at(5))
        assert resumed.of_type("progress")[0]["done"] == 4
        assert adapter(resumed) == adapter(undisturbed)
        assert resumed.result["trained_tokens"] == undisturbed.result["trained_tokens"]
        assert resumed.result["eval_loss"] == undisturbed.result["eval_loss"]

    def test_orpo_learns_the_better_answer_itself(self, job):
        """Its loss has the answer's own in it, which no method with a reference has."""
        first, *_, last = [each["values"] for each in job("orpo").run().of_type("metrics")]
        assert last["chosen_reward"] > first["chosen_reward"]
        assert first["loss"] > 4  # of a vocabulary of 320, about evenly

    def test_orpo_in_tiles_learns_what_it_does_of_whole_logits(self, job, monkeypatch):
        """By SGD, whose steps are as the gradients are: later losses tell of these."""
        from worker.steps.preference_trainers import OddsRatioTrainer, ORPOTrainer

        given = {"bits": 16, "max_steps": 4, "learning_rate": 0.1, "warmup_steps": 0}
        training = job("orpo", **given, training_args={"optim": "sgd"})
        tiles = [each["values"] for each in training.run().of_type("metrics")]
        monkeypatch.setattr(OddsRatioTrainer, "concatenated_forward", ORPOTrainer.concatenated_forward)
        whole = [each["values"] for each in training.run().of_type("metrics")]
        assert tiles[-1]["loss"] < 0.99 * tiles[0]["loss"]
        for name in ("loss", "chosen_reward", "rejected_reward", "reward_margin"):
            assert [each[name] for each in tiles] == pytest.approx([each[name] for each in whole], rel=1e-4)

    def test_all_weights_can_be_judged(self, job):
        """The reference's figures are taken before the first step: nothing else would be left of it."""
        ran = job("kto", tuning="full", bits="auto", lora_rank="auto", learning_rate=1e-3, max_steps=6).run()
        measured = [each["values"] for each in ran.of_type("metrics")]
        assert measured[0]["loss"] == pytest.approx(0.5, abs=1e-2)
        assert measured[-1]["reward_margin"] > measured[0]["reward_margin"] == pytest.approx(0, abs=1e-3)

    def test_less_memory_keeps_a_question_with_another_answer(self, job):
        from worker.steps.memory_ladder import halved

        assert halved(4, 1, 2) == {"batch_size": 2, "gradient_accumulation_steps": 2}
        assert halved(2, 2, 2) is None


class TestRows:
    def test_one_answer_and_what_comes_before(self, micro_model):
        tokenizer = ChatTokenizer(micro_model)
        before = [{"role": "user", "content": "a"}]
        chat = tokenizer.encode_chat([*before, {"role": "assistant", "content": "The best."}])
        row = judged([chat], {"max_length": 1000})
        assert row["prompt_ids"].tolist() == tokenizer.encode_prompt(before)
        assert all(chat.answer_mask[len(row["prompt_ids"]) :][: len(row["completion_ids"])])
        cut = judged([chat], {"max_length": len(row["prompt_ids"]) + 2})
        assert cut["completion_ids"] == row["completion_ids"][:2]
        assert judged([chat], {"max_length": len(row["prompt_ids"])}) is None

    def test_each_question_gets_the_answer_of_another(self):
        from datasets import Dataset

        from worker.steps.preference_trainers import OTHERS_ANSWER, _with_answers_of_others

        rows = Dataset.from_dict({"completion_ids": [[1], [2], [3], [4], [5]]})
        mixed = rows.map(_with_answers_of_others, batched=True, batch_size=3)
        assert mixed[OTHERS_ANSWER] == [[3], [1], [2], [5], [4]]

    def test_rarer_labels_weigh_more(self, job):
        rows = JUDGED[:12] + [row for row in JUDGED[12:] if row["label"]]
        prepared = job("kto", rows).prepared
        assert any("18 answers are labelled good and 6 bad" in event for event in prepared.events())
        chosen = prepared.result["hyperparameters"]
        assert (chosen["desirable_weight"], chosen["undesirable_weight"]) == (1.0, 18 / 6)
        given = job("kto", rows, training_args={"desirable_weight": 0.5}).prepared.result["hyperparameters"]
        assert (given["desirable_weight"], given["undesirable_weight"]) == (0.5, 1.0)

    def test_labels_that_are_all_the_same_are_told(self, job):
        good = [row for row in JUDGED if row["label"]]
        assert any(
            "All 18 answers are labelled good" in event for event in job("kto", good).prepared.events("warn")
        )

    def test_what_cannot_be_trained_on_is_refused(self, job):
        with pytest.raises(InvalidInput, match="kto needs at least two rows"):
            job("kto", JUDGED[:1])
        with pytest.raises(InvalidInput, match="kto learns from answers that are labelled good or bad"):
            job("kto", ROWS["orpo"])
        with pytest.raises(InvalidInput, match="orpo learns from pairs of answers"):
            job("orpo", JUDGED)


class TestParams:
    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"method": "kto", "batch_size": 1}, "batch_size must be at least 2 with kto"),
            ({"method": "kto", "effective_batch_size": 1}, "batch_size must be at least 2 with kto"),
            ({"method": "orpo", "packing": True}, "packing joins rows, and orpo"),
            ({"method": "orpo", "lora_dropout": 0.1}, "lora_dropout must be 0 with orpo"),
            ({"method": "kto", "assistant_only_loss": False}, "assistant_only_loss cannot be false with kto"),
            ({"method": "supervised", "beta": 0.1}, "beta is of the methods dpo, orpo, kto"),
            ({"method": "kto", "training_args": {"loss_type": "sigmoid"}}, "loss_type must be one of kto"),
            (
                {"method": "kto", "training_args": {"train_sampling_strategy": "random"}},
                "train_sampling_strategy must be one of sequential",
            ),
        ],
    )
    def test_what_does_not_fit_the_method_is_refused(self, params, says):
        given = {key: BY_PAIRS[key] for key in ("base_model", "training_file", "name")}
        with pytest.raises(ValidationError, match=says):
            FineTuneParams.model_validate({**given, **params})
