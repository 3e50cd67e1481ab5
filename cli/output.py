"""Where commands write: figures for a person, or JSON for a program; and how they end."""

import json
import sys
from enum import IntEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cli.text import harmless
from db.errors import InvalidInput, LatheError, NotFound, Unavailable


class ExitStatus(IntEnum):
    """What the exit status means."""

    OK = 0
    FAILED = 1  # the job failed or was cancelled, or the server refused
    USAGE = 2  # wrong usage or invalid input
    UNREACHABLE = 3  # the server does not answer, or cannot now
    NOT_FOUND = 4
    INTERRUPTED = 130


EXIT_STATUS: dict[type[LatheError], ExitStatus] = {
    InvalidInput: ExitStatus.USAGE,
    NotFound: ExitStatus.NOT_FOUND,
    Unavailable: ExitStatus.UNREACHABLE,
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def stdout() -> Console:
    return Console(highlight=False)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """Print one document: indented for a terminal, in one line for a program."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(document, indent=indent, ensure_ascii=False), flush=True)


def print_json_line(document: Any) -> None:
    print(json.dumps(document, ensure_ascii=False), flush=True)


def exit_status(error: LatheError) -> ExitStatus:
    return next((EXIT_STATUS[kind] for kind in type(error).__mro__ if kind in EXIT_STATUS), ExitStatus.FAILED)


def report(error: LatheError) -> None:
    """Say on stderr what went wrong, and which field was meant."""
    line = Text.assemble(("Error: ", "bold red"), harmless(error.message))
    is_named = not error.param or error.param.lower() in error.message.lower()
    if isinstance(error, InvalidInput) and not is_named:
        line.append(f" ({error.param})", "dim")
    stderr().print(line, soft_wrap=True)
