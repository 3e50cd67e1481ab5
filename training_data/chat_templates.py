"""Chat templates: ours, and how a foreign one is rendered, probed and masked.

What is true of one family of models is a row of `TEMPLATES`, never a branch. Foreign templates run in
jinja2's immutable sandbox, with the same environment that `transformers` gives them, so that the
training text is what a server renders later.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Chat = list[dict[str, str]]
# Of an assistant's message: "0" where nothing is to be learnt from it. No template is shown it.
WEIGHT, UNWEIGHTED = "weight", "0"

END_OF_TEXT = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"

CHATML = """\
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}{{- message['content'] + '<|im_end|>' }}{%- endgeneration %}
{{- '\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# For a base model that never saw a chat: no token is new to it, and its own end of text ends a turn. What
# it reads ends with a line end and not with a space, which tokenizers put into the next word's token.
PLAIN = """\
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}
{{- 'Answer:\\n' }}
{%- generation %}{{- message['content'] + eos_token }}{%- endgeneration %}
{{- '\\n' }}
{%- elif message['role'] == 'user' %}
{{- 'Question: ' + message['content'] + '\\n' }}
{%- else %}
{{- message['content'] + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Answer:\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class TemplateRow:
    """One chat template we bring along.

    Args:
        special_tokens: tokens the tokenizer must hold as special ones, in the order of their ids.
        end_of_turn: the token that ends an answer; None: the model's own end of text.
    """

    name: str
    template: str
    special_tokens: tuple[str, ...] = ()
    end_of_turn: str | None = None


TEMPLATES = {
    row.name: row
    for row in (
        TemplateRow("chatml", CHATML, (END_OF_TEXT, START_OF_TURN, END_OF_TURN), END_OF_TURN),
        TemplateRow("plain", PLAIN),
    )
}
OWN_MODELS = TEMPLATES["chatml"]
WITHOUT_TEMPLATE = TEMPLATES["plain"]


class ChatTemplateError(ValueError):
    """A template refused a conversation, or does not show what was said."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; `answers` are the character spans that the assistant writes."""

    text: str
    answers: tuple[tuple[int, int], ...]


class _Generation(Extension):
    """`{% generation %}`: marks the body, so that the mask can be read off the rendered text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own attribute

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(lineno)

    def _mark(self, caller: Callable[[], str]) -> str:
        marks: Any = self.environment.globals["generation_marks"]
        return f"{marks[0]}{caller()}{marks[1]}"


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - templates print the local day


class ChatTemplate:
    """A compiled template with the special tokens it may name.

    Args:
        source: the jinja text.
        special_tokens: bos_token, eos_token and the like, by these names.
    """

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        self.source = source
        self.special_tokens = special_tokens or {}
        # Random, so that no text of a user can be taken for a mark.
        mark = secrets.token_hex(8)
        self._marks = (f"\ue000{mark}\ue001", f"\ue001{mark}\ue000")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        environment.globals["generation_marks"] = self._marks
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ChatTemplateError(f"the chat template does not compile: {error}") from error

    def render(self, messages: Chat, *, add_generation_prompt: bool = False) -> str:
        """Render to the text that a model reads.

        Raises:
            ChatTemplateError: the template refuses these messages.
        """
        marked = self._render_marked(messages, add_generation_prompt=add_generation_prompt)
        return marked.replace(self._marks[0], "").replace(self._marks[1], "")

    def render_with_answers(self, messages: Chat) -> Rendered:
        """Render, and say which characters are the assistant's: its words and its end of turn.

        Templates with `{% generation %}` say so themselves; for others it is what comes after the
        generation prompt. Answers of weight 0 are left out.
        """
        marked = self._render_marked(messages, add_generation_prompt=False)
        if self._marks[0] in marked:
            return _without_unweighted(self._read_marks(marked), messages)
        rendered = Rendered(marked, tuple(self._answers_by_prefix(messages, marked)))
        return _without_unweighted(rendered, messages)

    @property
    def has_system_role(self) -> bool:
        """Whether a system turn comes out in the text."""
        probe = "3f9c system probe"
        chat = [{"role": "system", "content": probe}, {"role": "user", "content": "hello"}]
        try:
            return probe in self.render(chat, add_generation_prompt=True)
        except ChatTemplateError:
            return False

    def _render_marked(self, messages: Chat, *, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=unweighted(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ChatTemplateError(f"the chat template refuses the conversation: {error}") from error

    def _read_marks(self, marked: str) -> Rendered:
        opening, closing = self._marks
        parts: list[str] = []
        answers: list[tuple[int, int]] = []
        length = 0
        before, *blocks = marked.split(opening)
        parts.append(before)
        length += len(before)
        for block in blocks:
            answer, _, after = block.partition(closing)
            answers.append((length, length + len(answer)))
            parts += (answer, after)
            length += len(answer) + len(after)
        return Rendered("".join(parts), tuple(answers))

    def _answers_by_prefix(self, messages: Chat, text: str) -> list[tuple[int, int]]:
        """Find each answer after its generation prompt; the last one shows how a turn ends."""
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            return []
        ending = self._end_of_last_answer(messages[: turns[-1] + 1])
        answers = []
        cursor = 0
        for turn in turns:
            prompt = self.render(messages[:turn], add_generation_prompt=True)
            said = messages[turn]["content"]
            content = said if said in text[cursor:] else said.strip()
            start = len(prompt) if text.startswith(prompt) else text.find(content, cursor)
            found = text.find(content, max(start, cursor))
            if start < 0 or found < 0:
                raise ChatTemplateError("the chat template does not show the assistant's words as they are")
            end = found + len(content)
            if text.startswith(ending, end):
                end += len(ending)
            answers.append((start, end))
            cursor = end
        return answers

    def _end_of_last_answer(self, messages: Chat) -> str:
        text = self.render(messages)
        said = messages[-1]["content"]
        content = said if said in text else said.strip()
        return text[text.rfind(content) + len(content) :]


def unweighted(messages: Chat) -> Chat:
    """The messages as a template, or a server, is shown them."""
    if not any(WEIGHT in message for message in messages):
        return messages
    return [{name: text for name, text in message.items() if name != WEIGHT} for message in messages]


def _without_unweighted(rendered: Rendered, messages: Chat) -> Rendered:
    spoken = [message for message in messages if message["role"] == "assistant"]
    counts = [message.get(WEIGHT) != UNWEIGHTED for message in spoken]
    if all(counts):
        return rendered
    if len(counts) != len(rendered.answers):
        raise ChatTemplateError("the chat template does not show which answer is which, to give one weight 0")
    kept = tuple(span for span, count in zip(rendered.answers, counts, strict=True) if count)
    return Rendered(rendered.text, kept)


@lru_cache(maxsize=8)
def own_template() -> ChatTemplate:
    """The template of every model made here."""
    return ChatTemplate(OWN_MODELS.template, {"eos_token": END_OF_TURN, "pad_token": END_OF_TEXT})


def merge_system_turn(messages: Chat) -> Chat:
    """Put the system turn in front of the first user turn, for templates that know no system role."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, *others = messages
    for i, message in enumerate(others):
        if message["role"] == "user":
            merged = {"role": "user", "content": f"{system['content']}\n\n{message['content']}"}
            return [*others[:i], merged, *others[i + 1 :]]
    return [{"role": "user", "content": system["content"]}, *others]
