"""What the documents tell people to type is understood: commands and their flags by the parser of `lathe`,
requests by the routes of the API, code by its language.
"""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel
from typer.core import TyperGroup

from api.app import create_app
from cli.app import app as cli
from cli.flags import check_values, flags_of, read_values, understand
from cli.submit import EXAMPLES, named_by_argument
from db.kinds import PARAMS
from db.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|\| *)(?:\$ )?(?:[A-Z_]+=\S* )*(lathe(?: .*)?)$")
SPAN = re.compile(r"`lathe ([^`]+)`")
REQUEST = re.compile(r"(?:^|`)((?:GET|POST|DELETE)(?:\\?\|(?:GET|POST|DELETE))*) (/[^\s`]*)", re.MULTILINE)
OURS = re.compile(r"(?:https?://)?(?:localhost|127\.0\.0\.1):8000(/[^?]*)")
SENDING = {"-d", "--data", "-F", "--form"}
# An id is written as `job-…`; the parser wants one that is whole.
SHORTENED = re.compile(r"\b(job|checkpoint|file|key|sweep)-…")
PARSERS = {
    "python": lambda text: compile(text, "document", "exec"),
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
LEFT_OUT = "…"


def fences(document: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each block of code; lines that are continued are one."""
    for _, language, text in FENCE.findall(document.read_text()):
        yield language, dedent(text).replace("\\\n", " ")


def whole(text: str) -> str:
    return SHORTENED.sub(rf"\g<1>-{'0' * 32}", text)


# --- lathe ------------------------------------------------------------------------------------------------


@cache
def lathe() -> Any:
    """The whole command, which takes a while to make."""
    return typer.main.get_command(cli)


def typed_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the documents and of the help itself: where it stands, and its words after `lathe`."""
    for document in DOCUMENTS:
        for language, text in fences(document):
            if language in ("", "bash", "sh"):
                yield from _commands_in(text, document.name)
    for path, command in commands(lathe()):
        examples = re.sub(r"^ *", "", command.help or "", flags=re.MULTILINE)
        yield from _commands_in(examples, " ".join(["lathe", *path, "--help"]))


def _commands_in(text: str, place: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.splitlines():
        found = COMMAND.search(line)
        if found is None:
            continue
        lexer = shlex.shlex(whole(found[1]), posix=True, punctuation_chars="|<>")
        lexer.whitespace_split = True
        words = list(lexer)
        ends = [number for number, word in enumerate(words) if word in ("|", "<", ">")]
        yield f"{place}: {line.strip()}", words[1 : ends[0] if ends else None]


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A command and all below it, with the words that lead to each."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The innermost command that `words` begin with, and what is left of them."""
    command: Any = lathe()
    while isinstance(command, TyperGroup) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


def parse(words: list[str]) -> None:
    """Read a command as `lathe` would, up to where it asks the server.

    Raises:
        typer.TyperException: there is no such command or flag, or it does not take this value.
    """
    command, rest = command_of(words)
    kind = command.name.replace("-", "_")
    if LEFT_OUT in rest:
        place = rest.index(LEFT_OUT)
        rest = [*rest[:place], *shlex.split(EXAMPLES[kind])[2:], *rest[place + 1 :]]
    if isinstance(command, TyperGroup) and rest and not rest[0].startswith("-"):
        raise typer.BadParameter(f"there is no command {rest[0]!r}")
    context = command.make_context(command.name, rest)
    if kind not in EXAMPLES:
        return
    model = PARAMS[kind]
    given = context.params | named_by_argument(kind, dict(context.params))
    check_values(
        model, read_values(model, {name: given[name] for name in flags_of(model) if given.get(name)})
    )


class TestCommands:
    def test_are_understood(self) -> None:
        refused = {}
        found = list(typed_commands())
        assert len(found) > 100, "the documents' commands are no longer found"
        for place, words in found:
            try:
                parse(words)
            except typer.TyperException as error:
                refused[place] = str(error)
        assert refused == {}

    def test_that_are_only_named_exist_with_their_flags(self) -> None:
        unknown = []
        for document in DOCUMENTS:
            for span in SPAN.findall(document.read_text()):
                command, rest = command_of(re.split(r"[\s|\[\]]+", span))
                is_named = not isinstance(command, TyperGroup) or not rest or rest[0].startswith("-")
                known = {"-h", "--help", *(option for param in command.params for option in param.opts)}
                flags = set(re.findall(r"(?<!\S)\[?(--?[a-z][\w-]*)", " ".join(rest)))
                understood = {flag if flag in known else f"--{understand(flag[2:])}" for flag in flags}
                if not (is_named or command.invoke_without_command) or not understood <= known:
                    unknown.append(f"{document.name}: lathe {span}")
        assert unknown == []

    @pytest.mark.parametrize(
        "typed",
        [
            "lathe fine-tunes --base tiny",
            "lathe fine-tune --base tiny --data my.csv --nmae faq",
            "lathe fine-tune --base tiny --data my.csv --name faq --bits 5",
            "lathe models remove faq",
        ],
    )
    def test_a_wrong_one_would_be_noticed(self, typed: str) -> None:
        [(_, words)] = _commands_in(typed, "here")
        with pytest.raises(typer.TyperException):
            parse(words)


# --- requests ---------------------------------------------------------------------------------------------


def requests() -> Iterator[tuple[str, str, str, str]]:
    """Each request of the documents: where it stands, method, path, and its body as text."""
    for document in DOCUMENTS:
        for _, text in fences(document):
            for command in curls(text):
                yield from _request_of(command, document.name)
        text = document.read_text()
        for found in REQUEST.finditer(text):
            for method in re.split(r"\\?\|", found[1]):
                path = found[2].partition("?")[0]
                yield f"{document.name}: {found[0]}", method, path, text[found.end() :]


def curls(text: str) -> Iterator[list[str]]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("curl "):
            continue
        for end in range(number + 1, len(lines) + 1):
            try:
                yield shlex.split("\n".join(lines[number:end]), comments=True)
                break
            except ValueError:  # a quotation goes on
                continue


def _request_of(words: list[str], place: str) -> Iterator[tuple[str, str, str, str]]:
    addresses = [found for word in words if (found := OURS.match(word))]
    flags = dict(zip(words, [*words[1:], ""], strict=True))
    method = flags.get("-X") or ("POST" if SENDING & set(words) else "GET")
    for address in addresses:
        yield f"{place}: {' '.join(words)}", method, address[1], flags.get("-d", "")


def body_of(text: str) -> Any:
    """The JSON that a text begins with, or None."""
    try:
        return json.JSONDecoder().raw_decode(whole(text).lstrip())[0]
    except ValueError:
        return None


class TestRequests:
    def test_have_a_route(self) -> None:
        nowhere = Settings(database_url="postgresql://127.0.0.1:1/none", redis_url="redis://127.0.0.1:1")
        app = create_app(nowhere)
        routes = [route for route in (*app.routes, *app.state.operations) if hasattr(route, "path_regex")]
        found = list(requests())
        assert len(found) > 60, "the documents' requests are no longer found"
        lost = [
            place
            for place, method, path, _ in found
            if not any(route.path_regex.match(path) and method in route.methods for route in routes)
        ]
        assert lost == []

    def test_submit_what_is_a_job(self) -> None:
        bodies = [body_of(text) for _, _, path, text in requests() if path.startswith("/v1/jobs")]
        submitted = [body for body in bodies if isinstance(body, dict) and "kind" in body]
        assert len(submitted) > 3, "the documents' submits are no longer found"
        for body in submitted:
            params: type[BaseModel] = PARAMS[body["kind"]]
            params.model_validate(body["params"])


class TestCode:
    def test_parses(self) -> None:
        for document in DOCUMENTS:
            for language, text in fences(document):
                if language in PARSERS:
                    PARSERS[language](text)
