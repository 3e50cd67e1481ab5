"""The values of one row, by the keys that its shape calls them by."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from db.errors import InvalidInput
from training_data.chat_templates import UNWEIGHTED, WEIGHT, Chat
from training_data.messages import ROLE_KEYS, TEXT_KEYS, read_message, text_problem
from training_data.rows import Row

KNOWN_OF_TURNS = frozenset({*ROLE_KEYS, *TEXT_KEYS, WEIGHT})


class Fields:
    """The values of one row by a shape's keys; whatever is wrong with one is told by place and column.

    Args:
        unused: is given the names of what is read over.
    """

    def __init__(
        self, values: Mapping[str, Any], names: Mapping[str, str], place: str, param: str, unused: set[str]
    ) -> None:
        self._values = values
        self._names = names
        self._unused = unused
        self.place = place
        self.param = param

    def has(self, key: str) -> bool:
        """Whether there is anything by that key."""
        name = self._names.get(key)
        return name is not None and self._values.get(name) not in (None, "", [])

    def value(self, key: str) -> Any:
        return self._values.get(self._names.get(key, key))

    def name(self, key: str) -> str:
        return self._names.get(key, key)

    def refuse(self, message: str) -> InvalidInput:
        return InvalidInput(f"{self.place}: {message}", param=self.param)

    def text(self, key: str) -> str:
        """A text that says something."""
        value = self.value(key)
        problem = text_problem(value)
        if problem is None and not value.strip():
            problem = "is empty: fill it in, or leave the row out"
        if problem is not None:
            raise self.refuse(f"{self.name(key)} {problem}.")
        return str(value).strip()

    def optional(self, key: str) -> str:
        """A text, which is blank where there is none."""
        return self.text(key) if self.has(key) and str(self.value(key)).strip() else ""

    def turns(self, key: str, role: str) -> Chat:
        """A text as one turn of that role, or a list of messages, which a CSV holds as JSON."""
        if isinstance(self.value(key), list | dict) or _writes_turns(self.value(key)):
            return self.messages(key)
        return [{"role": role, "content": self.text(key)}]

    def messages(self, key: str) -> Chat:
        """A list of messages, which a CSV holds as JSON."""
        value = self.value(key)
        if isinstance(value, str):
            value = self._from_cell(value, key)
        if isinstance(value, dict) and isinstance(value.get("messages"), list):  # OpenAI's input of a pair
            self.read_over(key, (name for name in value if name != "messages"))
            value = value["messages"]
        if isinstance(value, dict) and not self.is_whole(key) and not value.keys().isdisjoint(ROLE_KEYS):
            value = [value]  # a turn of its own
        if not isinstance(value, list) or not value:
            raise self.refuse(f"{self.name(key)} is not a list with turns.")
        for message in value:
            if isinstance(message, dict) and not KNOWN_OF_TURNS.issuperset(message):
                others = (name for name in message if name not in KNOWN_OF_TURNS)
                self.read_over(key, (name for name in others if message[name] is not None))
        where = self.place if self.is_whole(key) else f"{self.place}, {self.name(key)}"
        return [read_message(each, f"{where}, message {i}", self.param) for i, each in enumerate(value, 1)]

    def is_whole(self, key: str) -> bool:
        """Whether the key is that of a whole conversation, which needs no naming."""
        return key in ("messages", "conversations")

    def read_over(self, key: str, names: Iterable[str]) -> None:
        """Tell of what stands within a value and is not used."""
        self._unused.update(f"{self.name(key)}.{name}" for name in names)

    def _from_cell(self, cell: str, key: str) -> Any:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError) as error:
            raise self.refuse(
                f"{self.name(key)} is no JSON: {error}. Within a field of a CSV each quote is written twice."
            ) from None

    def system(self) -> Chat:
        """The system turn that stands in a column of its own, or none."""
        said = self.optional("system")
        return [{"role": "system", "content": said}] if said else []

    def instruction(self) -> Chat:
        """LLaMA-Factory's keys: what the instruction is about follows it, and earlier turns come before."""
        turns: Chat = []
        history = self.value("history") if self.has("history") else []
        if not isinstance(history, list):
            raise self.refuse("history is no list of pairs of a question and its answer.")
        for i, pair in enumerate(history, start=1):
            if not isinstance(pair, list) or len(pair) != 2 or any(text_problem(each) for each in pair):
                raise self.refuse(f"history, turn {i}, is no pair of a question and its answer.")
            turns += [
                {"role": role, "content": said}
                for role, said in zip(("user", "assistant"), pair, strict=True)
            ]
        about = self.optional("input")
        said = self.text("instruction") + (f"\n\n{about}" if about else "")
        return [*turns, {"role": "user", "content": said}]

    def conversation(self, turns: Chat) -> Row:
        """A row of turns that end with an answer."""
        turns = self.without_blank_system(turns)
        if not turns or turns[-1]["role"] != "assistant":
            raise self.refuse("the last message must be the assistant's.")
        if all(turn.get(WEIGHT) == UNWEIGHTED for turn in turns if turn["role"] == "assistant"):
            raise self.refuse(
                "every answer has weight 0, so that there is nothing to learn from it. Give one of them "
                "weight 1, or leave the row out."
            )
        return self.row(turns)

    def prompt(self, turns: Chat) -> Chat:
        """Turns that an answer is to follow."""
        turns = self.without_blank_system(turns)
        if not turns or turns[-1]["role"] != "user":
            raise self.refuse("what comes before the answer must end with the user.")
        return turns

    def without_blank_system(self, turns: Chat) -> Chat:
        if turns and turns[0]["role"] == "system" and not turns[0]["content"].strip():
            turns = turns[1:]
        if any(turn["role"] == "system" for turn in turns[1:]):
            raise self.refuse("a system message can only come first.")
        return turns

    def row(self, turns: Chat, **kept: Any) -> Row:
        return Row(0, turns, place=self.place, **kept)


def _writes_turns(value: Any) -> bool:
    """Whether a cell holds a list of messages as JSON, which would be learnt as if somebody had said it."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return False
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return all(isinstance(turn, dict) and not turn.keys().isdisjoint(ROLE_KEYS) for turn in read)
