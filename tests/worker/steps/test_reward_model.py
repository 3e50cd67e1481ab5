"""A reward model: a real training of a micro model, whose numbers are looked at after."""

import csv
import json
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from db.disk import file_sha256
from db.errors import Conflict
from db.models import Job
from db.params.fine_tune import FineTuneParams
from db.sources import of_job
from db.states import JobKind, steps_of
from tests.worker.steps.fine_tuning import BY_PAIRS, PAIRS, WARNINGS_OF_LIBRARIES, adapter, interrupt_at
from training_data.tokens import ChatTokenizer

pytestmark = WARNINGS_OF_LIBRARIES


@pytest.fixture
def reward(by_pairs):
    return lambda **given: by_pairs(**{"method": "reward", "bits": 16, **given})


def number(model: Any, tokenizer: ChatTokenizer, question: str, answer: str) -> float:
    import torch

    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    chat = tokenizer.encode_chat(turns)
    end = len(chat.ids) - chat.answer_mask[::-1].index(True)
    with torch.no_grad():
        return float(model(torch.tensor([chat.ids[:end]])).logits[0, 0])


class TestTraining:
    def test_the_preferred_answers_get_the_higher_numbers(self, reward, micro_model):
        import torch
        from peft import PeftModel
        from transformers import AutoModelForSequenceClassification

        ran = reward(train_size=0.8, epochs=4.0).run()
        measured = [each["values"] for each in ran.of_type("metrics") if "loss" in each["values"]]
        assert measured[-1]["reward_accuracy"] == 1.0
        assert measured[-1]["reward_margin"] > measured[0]["reward_margin"] + 0.5
        assert ran.result["eval_loss"] < 0.69  # that of chance is ln 2
        assert ran.result["trained_tokens"] > 0
        base = AutoModelForSequenceClassification.from_pretrained(
            micro_model, num_labels=1, dtype=torch.float32, pad_token_id=0
        )
        model = PeftModel.from_pretrained(base, ran.folder / "adapter").eval()
        tokenizer = ChatTokenizer(micro_model)
        won = [
            number(model, tokenizer, question, better) > number(model, tokenizer, question, worse)
            for question, better, worse in PAIRS
        ]
        assert sum(won) >= 0.9 * len(won)
        [message] = [each for each in ran.of_type("artifact") if each["purpose"] is not None]
        columns = next(csv.DictReader((ran.folder / message["path"]).open(newline="")))
        assert {"train_reward_accuracy", "valid_reward_margin"} <= columns.keys()
        self._leaves_its_card(ran)

    def _leaves_its_card(self, ran: Any) -> None:
        """No step comes after the training, which could."""
        assert {"README.md", "recipe.json", "curves.png"} <= {m["name"] for m in ran.of_type("artifact")}
        recipe = json.loads((ran.folder / "recipe.json").read_text())
        weights = ran.folder / "adapter" / "adapter_model.safetensors"
        assert recipe["trained"] == {"adapter/adapter_model.safetensors": file_sha256(weights)}
        assert recipe["data"]["splits"].keys() == {"train.jsonl", "validation.jsonl", "test.jsonl"}
        assert recipe["result"]["peak_memory_bytes"] > 1e6
        text = (ran.folder / "README.md").read_text()
        metadata = yaml.safe_load(text.split("---\n")[1])
        assert (metadata["pipeline_tag"], metadata["tags"]) == ("text-classification", ["lathe", "reward"])
        for told in ("| seed | 42 |", "curves.png", "| seconds | ", recipe["template"]["sha256"]):
            assert told in text

    def test_all_weights_learn_with_the_head(self, reward):
        import torch
        from transformers import AutoModelForSequenceClassification

        ran = reward(tuning="full", bits="auto", lora_rank="auto", train_size=0.8, epochs=4.0).run()
        assert ran.result["eval_loss"] < 0.69
        folder = ran.folder / "model"
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        assert model.config.num_labels == 1
        won = [
            number(model, ChatTokenizer(folder), question, better)
            > number(model, ChatTokenizer(folder), question, worse)
            for question, better, worse in PAIRS
        ]
        assert sum(won) >= 0.9 * len(won)

    @pytest.mark.parametrize("bits", [16, pytest.param(4, marks=pytest.mark.slow)])
    def test_a_killed_one_ends_bit_identical(self, reward, bits):
        """The head of one number is among what goes on."""
        job = reward(bits=bits, save_steps=2, max_steps=7, train_size=0.9)
        undisturbed = job.run()
        resumed = job.resumed(interrupt_at(5))
        assert resumed.of_type("progress")[0]["done"] == 4
        assert adapter(resumed) == adapter(undisturbed)
        assert resumed.result["eval_loss"] == undisturbed.result["eval_loss"]


class TestJob:
    def test_ends_with_its_training(self):
        steps = [name for name, _ in steps_of(JobKind.FINE_TUNE, {"method": "reward"})]
        assert steps == ["prepare", "train"]
        assert len(steps_of(JobKind.FINE_TUNE, {"method": "dpo"})) == 5

    def test_nothing_is_made_of_what_it_has_trained(self, tmp_path):
        job = Job(id="job-1", kind="fine_tune", params={"method": "reward"}, steps=[])
        with pytest.raises(Conflict, match="judges answers and writes none") as caught:
            of_job(tmp_path, job, None)
        assert caught.value.code == "reward_model"

    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"quantizations": ["Q8_0"]}, "quantizations means nothing to a reward model"),
            ({"imatrix": True}, "imatrix means nothing to a reward model"),
            ({"alias": "ft:gpt-4o:acme::x1"}, "alias means nothing to a reward model"),
            ({"start_from": "faq"}, "start_from does not go with reward"),
            ({"beta": 0.1}, "beta is of the methods"),
            ({"lora_dropout": 0.1}, "lora_dropout must be 0 with reward"),
        ],
    )
    def test_what_it_has_nothing_to_do_with_is_refused(self, params, says):
        given = {key: BY_PAIRS[key] for key in ("base_model", "training_file", "name")}
        with pytest.raises(ValidationError, match=says):
            FineTuneParams.model_validate({**given, "method": "reward", **params})
