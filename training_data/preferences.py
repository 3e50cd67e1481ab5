"""Preferences: of two answers the better one, or whether one answer is good (KTO); in OpenAI's form, TRL's
and LLaMA-Factory's.

Texts or lists of messages. An answer is one assistant's turn, which is all that is compared.
"""

from db.errors import InvalidInput
from training_data.chat_templates import WEIGHT, Chat
from training_data.fields import Fields
from training_data.rows import Row

TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")


def read_openai_pair(fields: Fields) -> Row:
    return _pair(fields, _unweighted(fields, "input", "user"), "preferred_output", "non_preferred_output")


def read_pair(fields: Fields) -> Row:
    """TRL's form; without a prompt, both answers have the whole conversation before them."""
    before = _unweighted(fields, "prompt", "user") if fields.has("prompt") else None
    return _pair(fields, before, "chosen", "rejected")


def read_alpaca_pair(fields: Fields) -> Row:
    """LLaMA-Factory's form: both answers follow an instruction."""
    return _pair(fields, fields.instruction(), "chosen", "rejected")


def read_sharegpt_pair(fields: Fields) -> Row:
    """LLaMA-Factory's other form: both answers follow a conversation."""
    before = fields.messages("conversations")
    if any(WEIGHT in turn for turn in before):
        raise _weighed(fields, "conversations")
    return _pair(fields, before, "chosen", "rejected")


def read_judged(fields: Fields) -> Row:
    """TRL's form for KTO: a prompt, its completion, and a label that says whether it is good."""
    before = fields.prompt([*fields.system(), *_unweighted(fields, "prompt", "user")])
    answer = _unweighted(fields, "completion", "assistant")
    if len(answer) != 1 or answer[0]["role"] != "assistant":
        raise fields.refuse("completion must be one message, the assistant's.")
    return fields.row([*before, *answer], label=_is_good(fields, "label"))


def read_alpaca_judged(fields: Fields) -> Row:
    """LLaMA-Factory's form for KTO: an answer to an instruction, and a tag that says whether it is good."""
    before = fields.prompt([*fields.system(), *fields.instruction()])
    answer = {"role": "assistant", "content": fields.text("output")}
    return fields.row([*before, answer], label=_is_good(fields, "kto_tag"))


def read_judged_conversation(fields: Fields, key: str) -> Row:
    """LLaMA-Factory's other form: the tag is of the conversation's last answer."""
    *before, answer = _unweighted(fields, key, "assistant")
    if answer["role"] != "assistant":
        raise fields.refuse("the last message must be the assistant's.")
    before = fields.prompt([*fields.system(), *before])
    return fields.row([*before, answer], label=_is_good(fields, "kto_tag"))


def _is_good(fields: Fields, key: str) -> bool:
    said = str(fields.value(key)).strip().lower()
    if said not in (*TRUE, *FALSE):
        raise fields.refuse(
            f"{fields.name(key)} is {said[:40]!r}: give true for a good answer, false for a bad one; or name "
            "the format of rows that are not judged, such as prompt_completion."
        )
    return said in TRUE


def _pair(fields: Fields, prompt: Chat | None, chosen: str, rejected: str) -> Row:
    better = _unweighted(fields, chosen, "assistant")
    worse = _unweighted(fields, rejected, "assistant")
    before = better[:-1] if prompt is None else prompt
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
        raise _weighed(fields, key)
    return turns


def _weighed(fields: Fields, key: str) -> InvalidInput:
    return fields.refuse(
        f"{fields.name(key)}: a weight means nothing here, where only the last answers are compared. "
        "Leave it out."
    )
