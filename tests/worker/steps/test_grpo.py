"""GRPO: real trainings of a micro model, whose answers are looked at after."""

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from tests.worker.steps.fine_tuning import (
    WARNINGS_OF_LIBRARIES,
    FineTune,
    adapter,
    as_lines,
    interrupt_at,
    measured,
)
from training_data.reward_settings import BUILT_IN, read_rewards
from training_data.rows import answered, read_prepared
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps import builtin_rewards
from worker.steps.rewards import Reward, load_rewards

QUESTIONS = [{"prompt": f"Where is pot {n}?", "answer": f"In the kiln, row {n}."} for n in range(6)]
MODULE = '''
import math

def letters(prompts, completions, letter, **others):
    """The share of an answer that is the letter which its row wants."""
    said = [each[0]["content"] for each in completions]
    assert prompts[0][-1]["role"] == "user"
    return [text.count(wanted) / max(1, len(text)) for text, wanted in zip(said, letter, strict=True)]

async def slowly(completions, **others):
    return [float(len(each[0]["content"])) for each in completions]

def fails(completions, **others):
    raise KeyError("price")

def unreachable(completions, **others):
    raise ConnectionError("the judge is away")

def nothing(completions, **others):
    return [None] * len(completions)

def nan(completions, **others):
    return [math.nan] * len(completions)

def too_few(completions, **others):
    return [1.0]

def no_list(completions, **others):
    return 1.0

constant = 3
'''
PARAMS: dict[str, Any] = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "method": "grpo", "bits": 16,
    "rewards": ["letters"], "num_generations": 4, "max_completion_length": 8, "batch_size": 12,
    "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "lora_rank": 8, "beta": 0.0,
}  # fmt: skip

pytestmark = WARNINGS_OF_LIBRARIES


@pytest.fixture
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """The operator's module and file; gives rewards by name, as a step's input has them."""
    folder = tmp_path / "of-the-operator"
    folder.mkdir()
    (folder / "house_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    names = ["letters", "slowly", "fails", "unreachable", "nothing", "nan", "too_few", "no_list", "constant"]
    (folder / "rewards.toml").write_text(
        "".join(f'[reward.{name}]\nfunction = "house_rewards:{name}"\n' for name in names)
        + '[reward.lost]\nfunction = "no_such_module:it"\n'
    )
    there = read_rewards(folder / "rewards.toml")
    return lambda *names: [there[name].model_dump(mode="json") for name in names]


@pytest.fixture
def grpo(steps, micro_model, tmp_path, own_rewards):
    def make(rows: list[Any] | None = None, **params: Any) -> FineTune:
        given = {**PARAMS, **params}
        content = as_lines(rows or [{**row, "letter": "e"} for row in QUESTIONS])
        found = own_rewards(*given["rewards"])
        data = tmp_path / "rows.jsonl"
        return FineTune(steps, micro_model, data, content=content, rewards=found, defaults=given)

    return make


class TestTraining:
    def test_the_reward_goes_up_and_is_told(self, grpo, micro_model):
        rows = [{**row, "letter": "e"} for row in QUESTIONS * 2]
        ran = grpo(rows, bits=4, beta=0.01, max_steps=8, eval_steps=4, train_size=0.7).run()
        rewards = measured(ran, "reward")
        assert rewards[-1] > 3 * rewards[0] > 0
        kl = measured(ran, "kl")
        assert kl[0] == pytest.approx(0, abs=1e-3)
        assert kl[-1] > 10 * abs(kl[0])
        assert all(0 < tokens <= 8 for tokens in measured(ran, "answer_tokens"))
        assert len(measured(ran, "reward_std")) == 8
        # What is kept is what the held-out prompts' answers were rewarded best at.
        evaluated = measured(ran, "eval_reward")
        assert ran.result["eval_reward"] == pytest.approx(max(evaluated))
        assert (ran.result["first_reward"], ran.result["final_reward"]) == (rewards[0], rewards[-1])
        assert ran.result["trained_tokens"] > 8 * 12
        assert any("Step 1 of 8: reward " in event and "KL 0.0" in event for event in ran.events())
        with (ran.folder / "step_metrics.csv").open(newline="") as file:
            told = list(csv.DictReader(file))
        assert float(told[0]["train_reward"]) == rewards[0]
        assert float(told[3]["valid_reward"]) == pytest.approx(evaluated[0])
        # And by the weights that are kept, answers are what was wanted.
        assert share_of_letter(micro_model, ran.folder / "adapter") > 3 * share_of_letter(micro_model)

    def test_a_killed_one_ends_bit_identical(self, grpo):
        training = grpo(
            batch_size=4, gradient_accumulation_steps=2, save_steps=2, max_steps=4, beta=0.1, train_size=0.7
        )
        undisturbed = training.run()
        resumed = training.resumed(interrupt_at(3))
        assert resumed.of_type("progress")[0]["done"] == 2
        assert adapter(resumed) == adapter(undisturbed)
        assert measured(resumed, "reward") == measured(undisturbed, "reward")[2:]
        for figure in ("trained_tokens", "eval_reward", "final_reward"):
            assert resumed.result[figure] == undisturbed.result[figure]

    def test_all_weights_are_held_to_a_copy_of_what_they_were(self, grpo):
        ran = grpo(
            tuning="full", bits="auto", lora_rank="auto", beta=0.1, learning_rate=1e-2, max_steps=3
        ).run()
        kl = measured(ran, "kl")
        assert kl[0] == pytest.approx(0, abs=1e-4)
        assert kl[-1] > 0.01
        assert (ran.folder / "model" / "model.safetensors").is_file()

    @pytest.mark.slow
    def test_several_processes_train_together(self, grpo):
        """Each writes its part of the answers, and they are compared whole."""
        job = grpo(rewards=["brevity"], max_steps=3, beta=0.1, train_size=0.7)
        job.steps.settings = {"train_processes": 2}
        ran = job.run()
        assert ran.result["processes"] == 2
        assert len(measured(ran, "reward")) == 3
        assert ran.result["eval_reward"] is not None
        assert (ran.folder / "adapter" / "adapter_model.safetensors").is_file()


def share_of_letter(base: Path, trained: Path | None = None) -> float:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tokenizer = ChatTokenizer(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if trained is not None:
        model = PeftModel.from_pretrained(model, trained)
    torch.manual_seed(0)
    asked = tokenizer.encode_prompt([{"role": "user", "content": "Where is pot 3?"}])
    answers = model.generate(torch.tensor([asked] * 8), max_new_tokens=8, do_sample=True, pad_token_id=0)[
        :, len(asked) :
    ]
    said = "".join(tokenizer.tokenizer.decode(each.tolist()) for each in answers)
    return said.count("e") / len(said)


class TestRewards:
    def test_are_called_as_trl_calls_them(self, steps, own_rewards):
        [letters, slowly] = loaded(steps, own_rewards("letters", "slowly"), columns=["letter"])
        given = {
            "prompts": [[{"role": "user", "content": "a"}]] * 2,
            "completions": [[{"role": "assistant", "content": said}] for said in ("eye", "no")],
            "columns": [json.dumps({"letter": "e"}), json.dumps({"letter": "n"})],
            "completion_ids": [[1, 2, 3], [4]],
        }
        assert letters(**given) == [2 / 3, 1 / 2]
        assert slowly(**given) == [3.0, 2.0]
        assert (letters.__name__, slowly.__name__) == ("letters", "slowly")

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("fails", "The reward fails failed with KeyError: 'price'"),
            ("nothing", "The reward nothing gave None for answer 1, and no finite number"),
            ("nan", "The reward nan gave nan for answer 1"),
            ("too_few", "The reward too_few gave 1 numbers for 2 answers"),
            ("no_list", "The reward no_list gave 1.0, and no list of numbers"),
        ],
    )
    def test_that_do_not_judge_are_refused_by_name(self, steps, own_rewards, name, says):
        [reward] = loaded(steps, own_rewards(name))
        with pytest.raises(InvalidInput, match=re.escape(says)) as caught:
            reward(prompts=[], completions=[[{"content": "a"}]] * 2, columns=["{}"] * 2)
        assert (caught.value.param, caught.value.code) == ("rewards", "reward_failed")

    def test_that_cannot_be_reached_are_tried_again(self, steps, own_rewards):
        """What is refused never is."""
        [reward] = loaded(steps, own_rewards("unreachable"))
        with pytest.raises(
            RuntimeError, match="The reward unreachable did not reach what it asks: the judge"
        ):
            reward(prompts=[], completions=[[{"content": "a"}]], columns=["{}"])

    @pytest.mark.parametrize(
        ("name", "says"),
        [("lost", "No module named 'no_such_module'"), ("constant", "is no function")],
    )
    def test_that_are_not_there_end_the_first_step(self, grpo, name, says):
        with pytest.raises(InvalidInput, match=says) as caught:
            grpo(rewards=[name])
        assert (caught.value.param, caught.value.code) == ("rewards", "reward_unavailable")

    def test_of_trl_can_be_named(self, steps):
        reward = {"name": "thinks", "function": "trl.rewards:think_format_reward", "projects": None}
        [thinks] = loaded(steps, [reward])
        said = [[{"content": text}] for text in ("<think>hm</think>yes", "yes")]
        assert thinks(prompts=[], completions=said, columns=["{}"] * 2, trainer_state=None) == [1.0, 0.0]

    def test_of_the_example_judge(self, steps, monkeypatch):
        monkeypatch.delitem(sys.modules, "house_rewards", raising=False)
        monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples")
        names = ("polite", "near_the_price")
        named = [{"name": name, "function": f"house_rewards:{name}"} for name in names]
        polite, near = loaded(steps, named, columns=["price"])
        given = {
            "completions": [[{"content": said}] for said in ("Thank you: 12.", "It is 10 euros.", "No.")],
            "columns": [json.dumps({"price": 10.0})] * 3,
        }
        assert polite(**given) == [1.0, 0.0, 0.0]
        assert near(**given) == [1 / 3, 1.0, 0.0]
        monkeypatch.delitem(sys.modules, "house_rewards")

    def test_of_lathe(self, steps):
        assert {name for name in BUILT_IN if hasattr(builtin_rewards, name)} == set(BUILT_IN)
        named = [{"name": name} for name in BUILT_IN]
        rewards = loaded(steps, named, columns=["answer"], max_completion_length=4)
        given = {
            "completions": [[{"content": said}] for said in (" row\n7.", "It is Row 7. Yes.", "nowhere")],
            "columns": [json.dumps({"answer": "row 7."})] * 3,
            "completion_ids": [[1], [1, 2, 3, 4], [1, 2]],
        }
        judged = {reward.__name__: reward(**given) for reward in rewards}
        assert judged == {
            "exact_match": [1.0, 0.0, 0.0],
            "contains_answer": [1.0, 1.0, 0.0],
            "brevity": [0.75, 0.0, 0.5],
        }

    def test_that_fail_amid_a_training_end_it(self, grpo):
        with pytest.raises(InvalidInput, match="The reward nothing gave None for answer 1"):
            grpo(rewards=["nothing"], max_steps=1).run()


def loaded(steps: Any, named: list[dict[str, Any]], columns: Any = (), **settings: Any) -> list[Reward]:
    found: list[Reward] = []

    def run(step: Step) -> dict[str, Any]:
        found.extend(load_rewards(step, columns, settings))
        return {}

    params = {name: PARAMS[name] for name in ("base_model", "training_file", "name")}
    steps.run(run, "fine_tune", "train", params=params, rewards=named)
    return found


class TestRows:
    def test_are_prompts_with_their_other_columns(self, grpo):
        """Those of an answer, too: it is what the model's own are compared with."""
        rows = [
            {"question": "Where?", "answer": "Here.", "letter": "e", "completion_ids": 3},
            {"question": "Who?", "answer": "She.", "letter": "x"},
        ]
        prepared = grpo(rows, rewards=["letters", "exact_match"]).prepared
        found = list(read_prepared(prepared.folder / "train.jsonl"))
        assert [row.messages for row in found] == [
            [{"role": "user", "content": "Where?"}], [{"role": "user", "content": "Who?"}],
        ]  # fmt: skip
        assert [row.fields for row in found] == [
            {"answer": "Here.", "letter": "e"}, {"answer": "She.", "letter": "x"},
        ]  # fmt: skip
        assert answered(found[0])[-1] == {"role": "assistant", "content": "Here."}
        assert prepared.result["reward_columns"] == ["answer", "letter"]
        assert any("judged by letters, exact_match, given the columns answer, letter" in event
                   for event in prepared.events())  # fmt: skip
        assert any("not used: completion_ids" in event for event in prepared.events("warn"))

    def test_without_an_answer_are_compared_with_none(self, grpo):
        rows = [{"prompt": "Where?", "answer": "Here."}, {"prompt": "Who?", "answer": None}]
        with pytest.raises(InvalidInput, match="exact_match compares with a row's answer, and 1 of 2 rows"):
            grpo(rows, rewards=["exact_match"])

    def test_that_leave_no_room_for_an_answer_are_told(self, grpo):
        rows = [{"prompt": "Where?"}, {"prompt": "clay " * 30}]
        job = grpo(rows, max_length=48, rewards=["brevity"], max_steps=1)
        assert any("1 prompts are longer than max_length 48 leaves beside an answer of 8 tokens" in event
                   for event in job.prepared.events("warn"))  # fmt: skip
        ran = job.run()
        assert any("1 rows of train.jsonl have no answer left" in event for event in ran.events("warn"))
        assert ran.result["final_reward"] >= 0

    def test_each_prompt_comes_in_every_pass(self):
        from worker.steps.policy_trainer import PromptSampler

        sampler = PromptSampler(5, answers=2, prompts=3, times=2, seed_of_epoch=lambda: 7)
        given = list(sampler)
        assert len(given) == len(sampler) == 6 * 2 * 2
        assert set(given) == set(range(5))
        assert given[:6] == given[6:12]  # a batch for each micro-batch that is taken of it
        assert given[0:6:2] == given[1:6:2]  # and all answers to a prompt together
        assert list(sampler) == given


class TestParams:
    @pytest.mark.parametrize(
        ("params", "says"),
        [
            ({"rewards": []}, "rewards is missing: grpo learns of the answers that they prefer"),
            ({"rewards": ["a", "a"]}, "rewards names 'a' twice"),
            ({"reward_weights": [1, 2]}, "reward_weights must hold a number for each of the 1 rewards"),
            ({"reward_weights": [0]}, "reward_weights are all 0"),
            (
                {"effective_batch_size": 10, "num_generations": 4},
                "effective_batch_size is 10 answers, which is not divisible by num_generations 4.* Make it 8",
            ),
            (
                {"batch_size": 3, "gradient_accumulation_steps": 2, "num_generations": 4},
                "batch_size times gradient_accumulation_steps is 6 answers",
            ),
            ({"effective_batch_size": 1}, "effective_batch_size must be at least 2 with grpo"),
            ({"num_generations": 1}, "greater than or equal to 2"),
            (
                {"max_length": 64, "max_completion_length": 64},
                "max_completion_length must be less than max_length 64",
            ),
            ({"lora_dropout": 0.1}, "lora_dropout must be 0 with grpo"),
            ({"training_args": {"num_iterations": 2}}, "num_iterations cannot be given: a training must go"),
            ({"training_args": {"use_vllm": True}}, "use_vllm cannot be given: answers are written by"),
            ({"training_args": {"temperature": 1}}, "is set by the param temperature"),
            ({"training_args": {"top_p": 0}}, "top_p must be a number above 0, to 1"),
            ({"method": "dpo"}, "rewards is of the method grpo, which has the model answer"),
            ({"method": "dpo", "rewards": [], "beta": 0}, "beta must be greater than 0 with dpo"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, params, says):
        given = {key: PARAMS[key] for key in ("base_model", "training_file", "name", "method", "rewards")}
        with pytest.raises(ValidationError, match=says):
            FineTuneParams.model_validate({**given, **params})
