"""A Go template for Ollama that renders what a Jinja chat template renders.

Older servers of Ollama know no Jinja, and some send only the last user text when they do not recognise a
template. Rather than translate the code, the Jinja is asked: what stands between two messages depends, in
nearly every chat template, only on the roles of the two. Each such text is read off a small conversation
and becomes a branch. `matches` says whether that told the whole story.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]
Render = Callable[[Messages], str]  # renders with the generation prompt

START, END = "", "end"
# Conversations that show each step from one role to the next.
PROBES = (
    ("system", "user"),
    ("system", "user", "assistant", "user"),
    ("user",),
    ("user", "assistant", "user", "assistant", "user"),
)
WORDS = "Qzx{}w"  # content that no template holds, and that no template trims or changes


@dataclass(frozen=True)
class GoTemplate:
    """`texts[before, after]` is what stands between messages of these roles; "" begins, "end" asks."""

    texts: dict[tuple[str, str], str]

    @property
    def source(self) -> str:
        """The template for Ollama's create. It ranges over .Messages and remembers the last role."""
        branches: list[str] = []
        for role in ("system", "user", "assistant"):
            cases = [(before, text) for (before, after), text in self.texts.items() if after == role]
            if cases:
                keyword = "if" if not branches else "else if"
                branches.append(f'{{{{- {keyword} eq .Role "{role}" }}}}{_choose(cases)}{{{{- .Content }}}}')
        last = _choose([(before, text) for (before, after), text in self.texts.items() if after == END])
        return (
            '{{- $last := "" }}{{- range .Messages }}'
            + "".join(branches)
            + "{{- end }}{{- $last = .Role }}{{- end }}"
            + last
        )

    def render(self, messages: Messages) -> str:
        """What `source` renders, computed here."""
        parts, last = [], START
        for message in messages:
            parts += [self.texts.get((last, message["role"]), ""), message["content"]]
            last = message["role"]
        return "".join([*parts, self.texts.get((last, END), "")])


def derive(render: Render, *, bos: str = "") -> GoTemplate | None:
    """Read a Go template off a Jinja one; None where the Jinja does not show what was said.

    Args:
        render: the chat template, with the generation prompt.
        bos: the token that the server puts in front by itself, and so is left out.
    """
    texts: dict[tuple[str, str], str] = {}
    for roles in PROBES:
        messages = _probe(roles)
        try:
            rest = render(messages).removeprefix(bos)
        except ValueError:
            if "system" in roles:  # it has no system role
                continue
            return None
        last = START
        for message in messages:
            text, found, rest = rest.partition(message["content"])
            if not found:
                if "system" in roles:
                    break
                return None
            texts.setdefault((last, message["role"]), text)
            last = message["role"]
        else:
            texts.setdefault((last, END), rest)
    return GoTemplate(texts)


def matches(template: GoTemplate, render: Render, conversations: list[Messages], *, bos: str = "") -> bool:
    """Whether both render these conversations to the same text."""
    return all(template.render(each) == render(each).removeprefix(bos) for each in conversations)


def _probe(roles: tuple[str, ...]) -> Messages:
    return [{"role": role, "content": WORDS.format(i)} for i, role in enumerate(roles)]


def _choose(cases: list[tuple[str, str]]) -> str:
    """One text where all cases agree, else a branch on the role before."""
    if len({text for _, text in cases}) == 1:
        return _literal(cases[0][1])
    parts = []
    for i, (before, text) in enumerate(cases):
        keyword = "if" if i == 0 else "else if"
        parts.append(f'{{{{- {keyword} eq $last "{before}" }}}}{_literal(text)}')
    return "".join(parts) + "{{- end }}"


def _literal(text: str) -> str:
    """A Go string constant: JSON's escapes are Go's, and trim markers cannot reach into it."""
    return f"{{{{- {json.dumps(text, ensure_ascii=True)} }}}}" if text else ""
