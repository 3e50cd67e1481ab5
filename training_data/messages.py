"""One turn of a conversation, as files write it: OpenAI's role and content, or ShareGPT's from and value."""

import math
from typing import Any, TypeGuard

from db.errors import InvalidInput
from training_data.chat_templates import UNWEIGHTED, WEIGHT

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
KINDS = {"dict": "an object", "list": "a list", "bytes": "bytes"}
TOOL_KEYS = ("tool_calls", "function_call")


def is_text(value: Any) -> TypeGuard[str]:
    """Whether it can be written as text: JSON's escapes can also spell half of a surrogate pair."""
    return isinstance(value, str) and text_problem(value) is None


def text_problem(value: Any) -> str | None:
    """Why a value cannot be learnt as text, with what to do; None of a text, which may be blank."""
    if not isinstance(value, str):
        return _no_text(value)
    if "\0" in value:
        return "holds a NUL character: remove it"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = repr(value[error.start])[1:-1]
        return f"holds half of a character ({half}): write the whole one, as UTF-8"
    return None


def _no_text(value: Any) -> str:
    if value is None:
        return "is missing: fill it in, or leave the row out"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, and no text: fill it in, or leave the row out"
    if isinstance(value, bool | int | float):
        return f"is the value {str(value).lower()[:40]}, and no text: write it in quotes"
    name = type(value).__name__
    return f"is {KINDS.get(name, f'a {name}')}, and no text"


def read_message(message: Any, where: str, param: str) -> dict[str, str]:
    """Check a message, and keep what is text of it.

    Args:
        where: what an error calls it: `Line 3, message 2`.
    """
    if not isinstance(message, dict):
        raise InvalidInput(f"{where} is no object with role and content.", param=param)
    role_key, text_key = (
        next((key for key in keys if key in message), keys[0]) for keys in (ROLE_KEYS, TEXT_KEYS)
    )
    role = ROLES.get(str(message.get(role_key)))
    if role is None:
        raise InvalidInput(
            f"{where}: the role {str(message.get(role_key))[:80]!r} is none of {', '.join(ROLES)}.",
            param=param,
        )
    for key in TOOL_KEYS:
        if message.get(key):
            raise InvalidInput(
                f"{where}: {key} cannot be learnt from: write it into the content, or leave the row out.",
                param=param,
            )
    read = {"role": role, "content": _content(message.get(text_key), role, f"{where}: {text_key}", param)}
    weight = message.get(WEIGHT)
    if weight is None:
        return read
    if role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidInput(
            f"{where}: a weight is 0 or 1, and the assistant's: it says whether its words are learnt.",
            param=param,
        )
    return read if weight else {**read, WEIGHT: UNWEIGHTED}


def _content(content: Any, role: str, where: str, param: str) -> str:
    if isinstance(content, list):  # OpenAI's parts
        for i, part in enumerate(content, start=1):
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else None
                raise InvalidInput(f"{where}: part {i} is no text ({str(kind)[:40]!r}).", param=param)
        content = "".join(part["text"] for part in content)
    problem = text_problem(content)
    if problem is None and role != "system" and not content.strip():
        problem = "is empty: fill it in, or leave the row out"
    if problem is not None:
        raise InvalidInput(f"{where} {problem}.", param=param)
    return str(content)
