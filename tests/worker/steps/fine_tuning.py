"""Fine-tunes of a micro model, to be run, interrupted and gone on with, and what is looked at of them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from training_data.tokens import ChatTokenizer
from worker.checkpoints import list_checkpoints
from worker.step import Message, Step
from worker.steps import prepare, train

# Of torch, transformers, trl and peft: none is one that a caller can do anything about.
WARNINGS_OF_LIBRARIES = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"
)
ROWS = [(f"Where is pot {n}?", f"Pot {n} stands in the kiln{' of clay' * (n % 4)}.") for n in range(18)]
PARAMS: dict[str, Any] = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "lora_rank": 4, "batch_size": 2,
    "epochs": 2.0, "learning_rate": 5e-3, "gradient_accumulation_steps": 2, "save_steps": 2,
    "lora_dropout": 0.1,
}  # fmt: skip
# In place of what adapters are given.
ALL_WEIGHTS: dict[str, Any] = {
    "tuning": "full", "lora_rank": "auto", "lora_dropout": "auto", "learning_rate": 1e-3,
}  # fmt: skip
PAIRS = [
    (f"Where is pot {n}?", f"In the kiln, row {n}{' of clay' * (n % 4)}.", f"I will not tell, {n}.")
    for n in range(18)
]
BY_PAIRS: dict[str, Any] = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "method": "dpo", "lora_rank": 4,
    "batch_size": 4, "epochs": 3.0, "learning_rate": 5e-3, "gradient_accumulation_steps": 1,
}  # fmt: skip
Hear = Callable[[Step, Message], None]


class Interrupted(BaseException):
    """The end of a process, at a moment of the test's choice; nothing catches it."""


def interrupt_at(number: int) -> Hear:
    def hear(step: Step, message: Message) -> None:
        if message["type"] == "progress" and message["done"] == number:
            raise Interrupted

    return hear


def stop_at(number: int) -> Hear:
    def hear(step: Step, message: Message) -> None:
        if message["type"] == "progress" and message["done"] == number:
            step.stop_asked = True

    return hear


def as_csv(rows: Iterable[tuple[str, str]]) -> str:
    return "question,answer\n" + "".join(f"{question},{answer}\n" for question, answer in rows)


def as_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class FineTune:
    """One fine-tune, prepared.

    Args:
        data: where its rows are written, which are `content`.
        start, rewards: as a step's input has them.
        defaults: of its params.
    """

    def __init__(
        self,
        steps: Any,
        base: Path,
        data: Path,
        *,
        content: str | None = None,
        start: Path | None = None,
        rewards: list[dict[str, Any]] | None = None,
        defaults: dict[str, Any] = PARAMS,
        **params: Any,
    ) -> None:
        data.write_text(content or as_csv(ROWS))
        self.steps = steps
        self.given = {"params": {**defaults, **params}, "base": base, "start": start, "rewards": rewards}
        self.prepared = steps.run(prepare.run, "fine_tune", "prepare", files={"file-1": data}, **self.given)

    def run(self, **options: Any) -> Any:
        """Train; the progress of every step is told."""
        earlier = {"prepare": self.prepared}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("worker.steps.training_progress.SECONDS_BETWEEN_PROGRESS", 0)
            return self.steps.run(train.run, "fine_tune", "train", earlier=earlier, **self.given, **options)

    def interrupted(
        self, hear: Hear, ends_by: type[BaseException] = Interrupted, **options: Any
    ) -> list[Path]:
        """Run until `hear` ends it; gives the checkpoints that are left."""
        with pytest.raises(ends_by):
            self.run(hear=hear, **options)
        return list_checkpoints(self.steps.folder)

    def resumed(self, hear: Hear, **options: Any) -> Any:
        """Run until `hear` ends it, and then from the checkpoints that are left."""
        return self.run(resume_from=self.interrupted(hear, **options), **options)


def openais(question: str, better: str, worse: str) -> dict[str, Any]:
    """A pair as OpenAI has it."""
    return {
        "input": {"messages": [{"role": "user", "content": question}], "tools": []},
        "preferred_output": [{"role": "assistant", "content": better}],
        "non_preferred_output": [{"role": "assistant", "content": worse}],
    }


def preferring(steps: Any, base: Path, data: Path, rows: list[Any] | None = None, **given: Any) -> FineTune:
    """One that learns from `PAIRS`, or from other rows of answers that are judged."""
    content = as_lines(rows or [openais(*pair) for pair in PAIRS])
    return FineTune(steps, base, data, content=content, defaults=BY_PAIRS, **given)


def adapter(ran: Any) -> bytes:
    return (ran.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def weights_of(folder: Path, name: str = "model.safetensors") -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / name))


def logits_of(model: Any, ids: tuple[int, ...] = tuple(range(5, 15))) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits


def leads(model: Any, tokenizer: ChatTokenizer) -> list[float]:
    """By how much the better answer of each pair is likelier than the worse one, in nats."""
    return [
        _log_probability(model, tokenizer, question, better)
        - _log_probability(model, tokenizer, question, worse)
        for question, better, worse in PAIRS
    ]


def _log_probability(model: Any, tokenizer: ChatTokenizer, question: str, answer: str) -> float:
    import torch

    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    chat = tokenizer.encode_chat(turns)
    with torch.no_grad():
        logits = model(torch.tensor([chat.ids])).logits[0, :-1].float().log_softmax(-1)
    mine = zip(logits, chat.ids[1:], chat.answer_mask[1:], strict=True)
    return sum(float(row[token]) for row, token, learnt in mine if learnt)


def assert_same_weights(one: Any, other: Any, tuning: str = "lora") -> None:
    """Sums in another order differ by some 1e-6 of themselves. All weights are rounded to the 8 bits of
    bfloat16 when they are saved.
    """
    place = ("model", "model.safetensors") if tuning == "full" else ("adapter", "adapter_model.safetensors")
    tolerance = 2**-8 if tuning == "full" else 1e-4
    ours, theirs = (weights_of(ran.folder / place[0], place[1]) for ran in (one, other))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert (tensor.float() - theirs[key].float()).abs().max() <= tolerance * tensor.float().abs().max()


def measured(ran: Any, name: str) -> list[float]:
    """One measured value of a training, as a curve."""
    return [each["values"][name] for each in ran.of_type("metrics") if name in each["values"]]
