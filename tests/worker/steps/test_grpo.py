"""GRPO: real trainings of a micro model, whose answers are looked at after."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from db.errors import InvalidInput
from tests.worker.steps.test_resume import Interrupted, adapter, interrupt_at
from training_data.reward_settings import BUILT_IN, read_rewards
from training_data.rows import ANSWER
from training_data.tokens import ChatTokenizer
from worker.checkpoints import list_checkpoints
from worker.steps import builtin_rewards, prepare, train
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
    "base_model": "micro", "training_file": "file-1", "name": "x", "method": "grpo", "bits": 16, "rewards": ["letters"], "num_generations": 4, "max_completion_length": 8,
    "batch_size": 12, "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "lora_rank": 8, "beta": 0.0,
    }  # fmt: skip

# Theirs, none of which a caller can do anything about.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


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


class Grpo:
    """One training by rewards that can be run, interrupted and gone on with."""

    def __init__(self, steps: Any, base: Path, data: Path, rows: list[Any], **given: Any) -> None:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.steps = steps
        self.given: dict[str, Any] = {"base": base, **given}
        self.prepared = steps.run(prepare.run, "fine_tune", "prepare", files={"file-1": data}, **self.given)

    def run(self, **options: Any) -> Any:
        earlier = {"prepare": self.prepared}
        return self.steps.run(train.run, "fine_tune", "train", earlier=earlier, **self.given, **options)


@pytest.fixture
def grpo(steps, micro_model, tmp_path, own_rewards):
    def make(rows: list[Any] | None = None, **params: Any) -> Grpo:
        given = {**PARAMS, **params}
        rows = rows or [{**row, "letter": "e"} for row in QUESTIONS]
        found = own_rewards(*given["rewards"])
        return Grpo(steps, micro_model, tmp_path / "rows.jsonl", rows, rewards=found, params=given)

    return make


def measured(ran: Any, name: str) -> list[float]:
    return [each["values"][name] for each in ran.of_type("metrics") if name in each["values"]]


class TestTraining:
    def test_the_reward_goes_up_and_is_told(self, grpo, micro_model):
        rows = [{**row, "letter": "e"} for row in QUESTIONS * 2]
        ran = grpo(rows, bits=4, beta=0.01, max_steps=8, eval_steps=4, train_size=0.7).run()
        rewards = measured(ran, "reward")
        assert rewards[-1] > 3 * rewards[0] > 0
        assert measured(ran, "kl")[0] == pytest.approx(0, abs=1e-3) < measured(ran, "kl")[-1]
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

    def test_a_killed_one_ends_bit_identical(self, grpo, monkeypatch):
        monkeypatch.setattr("worker.steps.training_progress.SECONDS_BETWEEN_PROGRESS", 0)
        training = grpo(
            batch_size=4, gradient_accumulation_steps=2, save_steps=2, max_steps=5, beta=0.1, train_size=0.7
        )
        undisturbed = training.run()
        with pytest.raises(Interrupted):
            training.run(hear=interrupt_at(3))
        resumed = training.run(resume_from=list_checkpoints(training.steps.folder))
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
