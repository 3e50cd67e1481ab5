"""The shapes that a row of training data may have: one table, and how a row of each is read.

A shape is the keys that a row has, and what a method learns from it. A new one is a row of `SHAPES`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

from training_data.fields import Fields
from training_data.preferences import (
    read_alpaca_judged,
    read_alpaca_pair,
    read_judged,
    read_judged_conversation,
    read_openai_pair,
    read_pair,
    read_sharegpt_pair,
)
from training_data.rows import Row

Teaches = Literal["answers", "pairs", "judgements", "text", "prompts"]
# What a method learns from; the first is what its rows are said to be.
LEARNS_FROM: dict[str, tuple[Teaches, ...]] = {
    "supervised": ("answers",),
    "dpo": ("pairs",),
    "orpo": ("pairs",),
    "reward": ("pairs",),
    "kto": ("judgements",),
    "grpo": ("prompts", "answers"),
    "pretraining": ("text",),
}
WHAT: dict[Teaches, str] = {
    "answers": "answers",
    "pairs": "pairs of answers",
    "judgements": "answers that are labelled good or bad",
    "text": "plain text",
    "prompts": "prompts without answers",
}


@dataclass(frozen=True)
class Shape:
    """One of the shapes.

    Args:
        keys: that a row has; with a `?` at the end, that it may have.
        teaches: what can be learnt from it.
    """

    name: str
    keys: tuple[str, ...]
    teaches: Teaches
    read: Callable[[Fields], Row]

    @property
    def required(self) -> tuple[str, ...]:
        return tuple(key for key in self.keys if not key.endswith("?"))

    @property
    def all_keys(self) -> tuple[str, ...]:
        return tuple(key.removesuffix("?") for key in self.keys)

    def __str__(self) -> str:
        optional = "".join(f"[,{key[:-1]}]" for key in self.keys if key.endswith("?"))
        return ",".join(self.required) + optional


def _pair_of(question: str, answer: str) -> Callable[[Fields], Row]:
    def read(fields: Fields) -> Row:
        return fields.conversation(
            [*fields.system(), *fields.turns(question, "user"), *fields.turns(answer, "assistant")]
        )

    return read


def _alpaca(fields: Fields) -> Row:
    answer = {"role": "assistant", "content": fields.text("output")}
    return fields.conversation([*fields.system(), *fields.instruction(), answer])


def _conversation(key: str) -> Callable[[Fields], Row]:
    def read(fields: Fields) -> Row:
        turns = fields.messages(key)
        system = fields.system()
        if system and turns[0]["role"] == "system":
            raise fields.refuse("a system message stands in a column and in the conversation: keep one.")
        return fields.conversation([*system, *turns])

    return read


def _text(fields: Fields) -> Row:
    value = fields.value("text")
    fields.text("text")
    # In a CSV all is text.
    continues = str(fields.value("continues")).lower() if fields.has("continues") else "false"
    if continues not in ("true", "false"):
        raise fields.refuse("continues must be true or false: whether the next row goes on with this text.")
    # As it is: spaces at its ends are learnt too.
    return fields.row([], text=value, continues=continues == "true")


def _prompt(fields: Fields) -> Row:
    return fields.row(fields.prompt([*fields.system(), *fields.turns("prompt", "user")]))


# In the order in which they are looked for: what has more keys comes before what it would be taken for.
SHAPES = (
    Shape(
        "openai_preference", ("input", "preferred_output", "non_preferred_output"), "pairs", read_openai_pair
    ),
    Shape(
        "alpaca_preference",
        ("instruction", "input?", "chosen", "rejected", "system?", "history?"),
        "pairs",
        read_alpaca_pair,
    ),
    Shape(
        "sharegpt_preference", ("conversations", "chosen", "rejected", "system?"), "pairs", read_sharegpt_pair
    ),
    Shape("preference", ("prompt?", "chosen", "rejected", "system?"), "pairs", read_pair),
    Shape("kto", ("prompt", "completion", "label", "system?"), "judgements", read_judged),
    Shape(
        "alpaca_kto",
        ("instruction", "input?", "output", "kto_tag", "system?", "history?"),
        "judgements",
        read_alpaca_judged,
    ),
    Shape(
        "sharegpt_kto",
        ("conversations", "kto_tag", "system?"),
        "judgements",
        partial(read_judged_conversation, key="conversations"),
    ),
    Shape(
        "messages_kto",
        ("messages", "kto_tag", "system?"),
        "judgements",
        partial(read_judged_conversation, key="messages"),
    ),
    Shape("messages", ("messages", "system?"), "answers", _conversation("messages")),
    Shape("sharegpt", ("conversations", "system?"), "answers", _conversation("conversations")),
    Shape("alpaca", ("instruction", "input?", "output", "system?", "history?"), "answers", _alpaca),
    Shape("question_answer", ("question", "answer", "system?"), "answers", _pair_of("question", "answer")),
    Shape("input_output", ("input", "output", "system?"), "answers", _pair_of("input", "output")),
    Shape(
        "prompt_completion", ("prompt", "completion", "system?"), "answers", _pair_of("prompt", "completion")
    ),
    Shape("text", ("text", "continues?"), "text", _text),
    Shape("prompt", ("prompt", "system?"), "prompts", _prompt),
)
BY_NAME = {shape.name: shape for shape in SHAPES}
KEYS = frozenset(key for shape in SHAPES for key in shape.all_keys)


def method_for(shape: Shape) -> str:
    """The first method that learns from such rows."""
    return next(method for method, learns in LEARNS_FROM.items() if shape.teaches in learns)


def find_shape(names: Collection[str]) -> Shape | None:
    """The shape of rows with columns by these names, or None."""
    return next((shape for shape in SHAPES if all(key in names for key in shape.required)), None)
