"""Preference pairs: a conversation, the answer that is preferred, and one that is less good.

OpenAI's form and TRL's, whose `prompt`, `chosen` and `rejected` are texts or lists of messages. Both answers
are one assistant's turn each, which is all that is compared.
"""

from collections.abc import Collection, Iterator
from typing import Any

from db.errors import InvalidInput
from training_data.chat_templates import WEIGHT, Chat
from training_data.messages import is_text, read_message

OPENAIS = ("input", "preferred_output", "non_preferred_output")
TRLS = ("prompt", "chosen", "rejected")
# TRL's too: both answers with the whole conversation before them.
WHOLE = ("chosen", "rejected")
PAIRS = tuple(map(",".join, (OPENAIS, TRLS, WHOLE)))


def pair_keys(keys: Collection[str]) -> str | None:
    """The keys of a pair among a row's, as one text; None where it holds no pair."""
    for form in (OPENAIS, TRLS, WHOLE):
        if all(key in keys for key in form):
            return ",".join(form)
    return None


def unused(record: dict[str, Any], pair: str) -> Iterator[str]:
    """What no pair is made of: other keys, and those of OpenAI's input besides its messages."""
    yield from (key for key in record if key not in pair.split(","))
    if isinstance(record.get(OPENAIS[0]), dict):
        yield from (f"input.{key}" for key in record["input"] if key != "messages")


def read_pair(record: dict[str, Any], line: int, param: str) -> tuple[Chat, str]:
    """Read a row.

    Returns:
        the conversation with the preferred answer, and the other answer.
    Raises:
        InvalidInput: the message names the line and the key.
    """
    pair = pair_keys(record)
    if pair is None:
        raise InvalidInput(f"Line {line} holds no pair of answers: {' or '.join(PAIRS)}.", param=param)
    *prompt, chosen, rejected = pair.split(",")
    better = _turns(record[chosen], "assistant", f"Line {line}, {chosen}", param)
    worse = _turns(record[rejected], "assistant", f"Line {line}, {rejected}", param)
    if prompt:
        value = record[prompt[0]]
        value = value.get("messages") if prompt[0] == OPENAIS[0] and isinstance(value, dict) else value
        before = _turns(value, "user", f"Line {line}, {prompt[0]}", param)
    else:
        before = better[:-1]
        if before != worse[:-1]:
            raise InvalidInput(
                f"Line {line}: without a prompt, chosen and rejected must be the same conversation up to the "
                "last message.",
                param=param,
            )
    _check_prompt(before, line, param)
    # Some write the prompt into both answers again.
    better, worse = (answer[-1:] if answer[:-1] == before else answer for answer in (better, worse))
    for name, answer in ((chosen, better), (rejected, worse)):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise InvalidInput(f"Line {line}: {name} must be one message, the assistant's.", param=param)
    if better[0]["content"].strip() == worse[0]["content"].strip():
        raise InvalidInput(f"Line {line}: both answers are the same, so that none is preferred.", param=param)
    return [*before, better[0]], worse[0]["content"]


def _turns(value: Any, role: str, where: str, param: str) -> Chat:
    """A text as one turn, or a list of messages."""
    if is_text(value) and value.strip():
        return [{"role": role, "content": value.strip()}]
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{where} is empty, or neither a text nor a list of messages.", param=param)
    turns = [read_message(each, f"{where}, message {i}", param) for i, each in enumerate(value, start=1)]
    if any(isinstance(each, dict) and each.get(WEIGHT) is not None for each in value):
        raise InvalidInput(
            f"{where}: a weight means nothing in a pair, of which only the last answers are compared. "
            "Leave it out.",
            param=param,
        )
    return turns


def _check_prompt(before: Chat, line: int, param: str) -> None:
    if before and before[0]["role"] == "system" and not before[0]["content"].strip():
        del before[0]
    if not before or before[-1]["role"] != "user":
        raise InvalidInput(f"Line {line}: what comes before the answers must end with the user.", param=param)
    if any(message["role"] == "system" for message in before[1:]):
        raise InvalidInput(f"Line {line}: a system message can only come first.", param=param)
