"""One turn of a conversation, as files write it."""

from typing import Any, TypeGuard

from db.errors import InvalidInput
from training_data.chat_templates import UNWEIGHTED, WEIGHT

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def is_text(value: Any) -> TypeGuard[str]:
    """Whether it can be written as text: JSON's escapes can also spell half of a surrogate pair."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_message(message: Any, where: str, param: str) -> dict[str, str]:
    """Check a message, and keep what is text of it.

    Args:
        where: what an error calls it: `Line 3, message 2`.
    """
    if not isinstance(message, dict):
        raise InvalidInput(f"{where} is no object with role and content.", param=param)
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise InvalidInput(
            f"{where}: the role {message.get('role')!r} is none of {', '.join(ROLES)}.", param=param
        )
    content = message.get("content")
    if isinstance(content, list):  # OpenAI's parts
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not is_text(content) or (role != "system" and not content.strip()):
        raise InvalidInput(f"{where}: content is empty or no text.", param=param)
    read = {"role": role, "content": content}
    weight = message.get(WEIGHT)
    if weight is None:
        return read
    if role != "assistant" or isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidInput(
            f"{where}: a weight is 0 or 1, and the assistant's: it says whether its words are learnt.",
            param=param,
        )
    return read if weight else {**read, WEIGHT: UNWEIGHTED}
