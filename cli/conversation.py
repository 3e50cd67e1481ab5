"""A conversation: what was said, how the model is to be asked, and the file that keeps both.

The file is a JSON object with OpenAI's `messages`, as the chat page exports and imports it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.errors import InvalidInput

JSON = dict[str, Any]
MOST_BYTES = 64 * 1024**2
DEFAULT = "default"
MAX_TOKENS = "max_tokens"


@dataclass(frozen=True)
class Parameter:
    """What a request says beside its messages: a number between two bounds, or a text."""

    read: Callable[[str], float | int | str]
    least: float | None = None
    most: float | None = None

    @property
    def description(self) -> str:
        if self.read is str:
            return "a text"
        kind = "a whole number" if self.read is int else "a number"
        if self.least is None:
            return kind
        return f"{kind} from {self.least:g}" + (f" to {self.most:g}" if self.most is not None else "")


PARAMETERS = {
    "temperature": Parameter(float, 0),
    MAX_TOKENS: Parameter(int, 1),
    "top_p": Parameter(float, 0, 1),
    "top_k": Parameter(int, 0),
    "min_p": Parameter(float, 0, 1),
    "seed": Parameter(int),
    "stop": Parameter(str),
    "presence_penalty": Parameter(float, -2, 2),
    "frequency_penalty": Parameter(float, -2, 2),
    "repeat_penalty": Parameter(float, 0),
}
# As Ollama's users know it.
ALIASES = {"num_predict": MAX_TOKENS}


def read_parameter(name: str, text: str) -> tuple[str, float | int | str | None]:
    """A parameter by its name or alias, and its value; None for `default`.

    Raises:
        InvalidInput: there is no such parameter, or it does not take that value.
    """
    name = ALIASES.get(name.lower(), name.lower())
    parameter = PARAMETERS.get(name)
    if parameter is None:
        raise InvalidInput(f"There is no parameter {name!r}. There are: {', '.join(PARAMETERS)}.")
    if text.lower() == DEFAULT:
        return name, None
    try:
        value = parameter.read(text)
    except ValueError:
        value = None
    if value is None or not _lies_within(value, parameter):
        raise InvalidInput(f"{name} takes {parameter.description}, or `default`: not {text!r}.")
    return name, value


def _lies_within(value: float | int | str, parameter: Parameter) -> bool:
    if isinstance(value, str):
        return True
    above = parameter.least is None or value >= parameter.least
    return above and (parameter.most is None or value <= parameter.most) and abs(value) < float("inf")


@dataclass
class Conversation:
    """What was said so far, and how the model is to be asked.

    Args:
        collections: names or ids of what answers rest on, beside the model's own documents.
    """

    model: str
    system: str | None = None
    options: JSON = field(default_factory=dict)
    collections: list[str] = field(default_factory=list)
    own_documents: bool = False
    turns: list[JSON] = field(default_factory=list)

    def body(self, prompt: str) -> JSON:
        """The request that asks `prompt` in this conversation."""
        sources: JSON = {}
        if self.collections:
            sources["collections"] = self.collections
        if self.own_documents:
            sources["documents"] = True
        messages = [*self._messages(), {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, **self.options, **sources}

    def remember(self, prompt: str, answer: str) -> None:
        self.turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]

    def forget_last(self) -> str | None:
        """Take the last question out, with what was answered; the question, if there is one."""
        for index in range(len(self.turns) - 1, -1, -1):
            if self.turns[index]["role"] == "user":
                prompt: str = self.turns[index]["content"]
                del self.turns[index:]
                return prompt
        return None

    def last_answer(self) -> str | None:
        answers = [turn["content"] for turn in self.turns if turn["role"] == "assistant"]
        return answers[-1] if answers else None

    def save(self, path: Path) -> None:
        """Write it down; the file is whole or not changed.

        Raises:
            InvalidInput: the file cannot be written.
        """
        document = {
            "model": self.model,
            **self.options,
            "collections": self.collections,
            "own_documents": self.own_documents,
            "messages": self._messages(),
        }
        written = path.with_name(f".{path.name}.part")
        try:
            # A model may say half of a surrogate pair, which is escaped.
            text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
            written.write_text(text, encoding="utf-8", errors="backslashreplace")
            written.replace(path)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error.strerror}.") from None

    def load(self, path: Path) -> None:
        """Take over what a file says: messages, system prompt, parameters, collections. The model stays.

        Raises:
            InvalidInput: the file cannot be read, or is no conversation.
        """
        document = _read(path)
        turns, system = _turns_of(document["messages"], path)
        given = {name: document[name] for name in PARAMETERS if document.get(name) is not None}
        self.options.update(read_parameter(name, str(value)) for name, value in given.items())
        named = document.get("collections")
        self.collections = [str(name) for name in named] if isinstance(named, list) else []
        self.own_documents = document.get("own_documents") is True
        self.turns, self.system = turns, system

    def _messages(self) -> list[JSON]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]


def _read(path: Path) -> JSON:
    """A file as an object with `messages`; messages alone, and the chat page's list of one, are as good."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InvalidInput(f"{path} has more than {MOST_BYTES >> 20} MiB: that is no conversation.")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise InvalidInput(f"{path} is no JSON.") from None
    if isinstance(document, dict) and isinstance(document.get("conversations"), list):
        number = len(document["conversations"])
        if number != 1:
            raise InvalidInput(f"{path} has {number} conversations: export the one that is meant.")
        document = document["conversations"][0]
    if isinstance(document, list):
        document = {"messages": document}
    if not isinstance(document, dict) or not isinstance(document.get("messages"), list):
        raise InvalidInput(f"{path} has no `messages`: it is no conversation.")
    return document


def _turns_of(messages: list[Any], path: Path) -> tuple[list[JSON], str | None]:
    turns, system = [], None
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, str) or role not in ("system", "developer", "user", "assistant"):
            raise InvalidInput(
                f"{path} has a message that is not a text of the system, the user or the assistant."
            )
        if role in ("system", "developer"):
            system = content
        elif content:
            turns.append({"role": role, "content": content})
    return turns, system
