"""A training's chat template, as the served file carries it: the same text for the same conversation.

llama-server gives templates some variables that no training gives, such as today's date, or that the model is
to think. Where that changes what a template writes, the variable is taken away again.
"""

import re

from training_data.chat_templates import Chat, ChatTemplate, ChatTemplateError
from training_data.tokens import NAMED_TOKENS

GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
COMMENT = re.compile(r"(\{#.*?#\})", re.DOTALL)
# What llama-server sets by itself, with a value as it might be, in Jinja.
SERVERS_OWN = {
    "enable_thinking": "true",
    "preserve_thinking": "true",
    "preserve_reasoning": "true",
    "date_string": "'01 Jan 1970'",
}
UNSET = "a_name_that_nobody_gives"
PROBES: tuple[Chat, ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on."},
    ],
    [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on."},
    ],
)


def without_generation_tags(template: str) -> str:
    """Take `{% generation %}` out, which only the trainer's mask needs.

    Each tag becomes an empty comment with the same whitespace control, so the text it renders is the
    same in every Jinja. What a comment says of such tags stays: comments do not nest.
    """
    parts = COMMENT.split(template)
    return "".join(
        part if COMMENT.fullmatch(part) else GENERATION_TAG.sub(r"{#\1 \2#}", part) for part in parts
    )


def served_template(template: str) -> str:
    """Make the template of a file that was trained here: no tags of the trainer, no variables of a server."""
    plain = without_generation_tags(template)
    return "".join(f"{{%- set {name} = {UNSET} -%}}" for name in unwanted_variables(plain)) + plain


def unwanted_variables(template: str) -> list[str]:
    """The server's own variables that change what a template writes."""
    expected = _rendered(template)
    return [
        name
        for name, value in SERVERS_OWN.items()
        if name in template and _rendered(f"{{%- set {name} = {value} -%}}{template}") != expected
    ]


def _rendered(template: str) -> list[str | None]:
    """What it writes to each probe; None where it refuses one."""
    compiled = ChatTemplate(template, {name: f"<{name}>" for name in NAMED_TOKENS})
    return [_render(compiled, chat) for chat in PROBES]


def _render(template: ChatTemplate, chat: Chat) -> str | None:
    try:
        return template.render(chat, add_generation_prompt=True)
    except ChatTemplateError:
        return None
