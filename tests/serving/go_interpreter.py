"""As much of Go's text/template as chat templates for Ollama use: range, if, else, eq, variables, constants.

Anything else is an error, as a misspelt template is one for the real parser.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
STRING = r'"(?:[^"\\]|\\.)*"'
OPERAND = rf"(?:{STRING}|\.\w+|\$\w+)"


class BadTemplate(ValueError):
    pass


@dataclass
class Node:
    """A list of parts, or a branch or loop that has lists of its own."""

    kind: str
    value: str = ""
    body: list["Node"] = field(default_factory=list)
    otherwise: list["Node"] = field(default_factory=list)


def parse(source: str) -> list[Node]:
    """Parse a template.

    Raises:
        BadTemplate: it is not one, or uses more than is known here.
    """
    root: list[Node] = []
    stack: list[tuple[Node | None, list[Node]]] = [(None, root)]
    for kind, text in _pieces(source):
        current = stack[-1][1]
        if kind == "text":
            current.append(Node("text", text))
        elif text == "end":
            while stack[-1][0] is not None and stack[-1][0].kind == "elif":
                stack.pop()
            if stack.pop()[0] is None:
                raise BadTemplate("unexpected {{end}}")
        elif text == "else" or text.startswith("else if "):
            owner = stack[-1][0]
            if owner is None or owner.kind == "range":
                raise BadTemplate("unexpected {{else}}")
            if text == "else":
                stack[-1] = (owner, owner.otherwise)
            else:
                branch = Node("elif", text.removeprefix("else if "))
                owner.otherwise.append(branch)
                stack.append((branch, branch.body))
        elif text.startswith(("if ", "range ")):
            keyword, _, value = text.partition(" ")
            node = Node(keyword, value)
            current.append(node)
            stack.append((node, node.body))
        else:
            current.append(_simple(text))
    if len(stack) != 1:
        raise BadTemplate("unexpected EOF")
    return root


def render(nodes: list[Node], data: dict[str, Any]) -> str:
    return _run(nodes, data, {})


def _pieces(source: str) -> list[tuple[str, str]]:
    pieces: list[tuple[str, str]] = []
    end, trim_next = 0, False
    for match in ACTION.finditer(source):
        text = source[end : match.start()]
        if trim_next:
            text = text.lstrip()
        if match[1]:
            text = text.rstrip()
        if "{{" in text or "}}" in text:
            raise BadTemplate("unclosed action")
        pieces += [("text", text)] if text else []
        pieces.append(("action", match[2]))
        end, trim_next = match.end(), bool(match[3])
    rest = source[end:].lstrip() if trim_next else source[end:]
    if "{{" in rest:
        raise BadTemplate("unclosed action")
    return [*pieces, *([("text", rest)] if rest else [])]


def _simple(text: str) -> Node:
    if re.fullmatch(rf"\$\w+ :?= {OPERAND}", text):
        return Node("set", text.replace(":=", "="))
    if re.fullmatch(OPERAND, text):
        return Node("put", text)
    raise BadTemplate(f"unexpected {text!r} in operand")


def _run(nodes: list[Node], dot: Any, variables: dict[str, Any]) -> str:
    parts = []
    for node in nodes:
        if node.kind == "text":
            parts.append(node.value)
        elif node.kind == "put":
            parts.append(str(_value(node.value, dot, variables)))
        elif node.kind == "set":
            name, _, value = node.value.partition(" = ")
            variables[name] = _value(value, dot, variables)
        elif node.kind == "range":
            parts += [_run(node.body, each, variables) for each in _value(node.value, dot, variables)]
        else:
            branch = node.body if _true(node.value, dot, variables) else node.otherwise
            parts.append(_run(branch, dot, variables))
    return "".join(parts)


def _true(condition: str, dot: Any, variables: dict[str, Any]) -> bool:
    match = re.fullmatch(rf"eq ({OPERAND}) ({OPERAND})", condition)
    if match is not None:
        return bool(_value(match[1], dot, variables) == _value(match[2], dot, variables))
    return bool(_value(condition, dot, variables))


def _value(operand: str, dot: Any, variables: dict[str, Any]) -> Any:
    if operand.startswith('"'):
        return json.loads(operand)
    if operand.startswith("."):
        return dot[operand[1:]]
    if operand not in variables:
        raise BadTemplate(f"undefined variable {operand}")
    return variables[operand]
