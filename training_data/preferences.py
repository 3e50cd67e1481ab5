"""Preferences: of two answers the better one (OpenAI's form and TRL's), or whether one answer is good (KTO).

Texts or lists of messages. An answer is one assistant's turn, which is all that is compared.
"""

from training_data.chat_templates import WEIGHT, Chat
from training_data.fields import Fields
from training_data.rows import Row

TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


def read_openai_pair(fields: Fields) -> Row:
    return _pair(fields, "input", "preferred_output", "non_preferred_output")


def read_pair(fields: Fields) -> Row:
    """TRL's form; without a prompt, both answers have the whole conversation before them."""
    return _pair(fields, "prompt" if fields.has("prompt") else None, "chosen", "rejected")


def read_judged(fields: Fields) -> Row:
    """TRL's form for KTO: a prompt, its completion, and a label that says whether it is good."""
    before = fields.prompt([*fields.system(), *_unweighted(fields, "prompt", "user")])
    answer = _unweighted(fields, "completion", "assistant")
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise fields.refuse("completion must be one message, the assistant's.")
    said = str(fields.value("label")).strip().lower()
    if said not in (*TRUE, *FALSE):
        raise fields.refuse(f"label is {said[:40]!r}: give true for a good answer, false for a bad one.")
    return fields.row([*before, *answer], label=said in TRUE)


def _pair(fields: Fields, prompt: str | None, chosen: str, rejected: str) -> Row:
    better = _unweighted(fields, chosen, "assistant")
    worse = _unweighted(fields, rejected, "assistant")
    before = better[:-1] if prompt is None else _unweighted(fields, prompt, "user")
    if prompt is None and before != worse[:-1]:
        raise fields.refuse(
            "without a prompt, chosen and rejected must be the same conversation up to the last message."
        )
    # Some write the prompt into both answers again.
    better, worse = (answer[-1:] if answer[:-1] == before else answer for answer in (better, worse))
    before = fields.prompt([*fields.system(), *before])
    for name, answer in ((chosen, better), (rejected, worse)):
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise fields.refuse(f"{fields.name(name)} must be one message, the assistant's.")
    if better[0]["content"].strip() == worse[0]["content"].strip():
        raise fields.refuse("both answers are the same, so that none is preferred.")
    return fields.row([*before, better[0]], rejected=worse[0]["content"])


def _unweighted(fields: Fields, key: str, role: str) -> Chat:
    turns = fields.turns(key, role)
    given = fields.value(key)
    given = given.get("messages") if isinstance(given, dict) else given
    if isinstance(given, list) and any(
        isinstance(each, dict) and each.get(WEIGHT) is not None for each in given
    ):
        raise fields.refuse(
            f"{fields.name(key)}: a weight means nothing here, where only the last answers are compared. "
            "Leave it out."
        )
    return turns
