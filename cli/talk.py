"""The conversation at the terminal: what is typed is a message, or a /command."""

import contextlib
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape

from cli.answer import Answer, stream_chunks
from cli.client import Client
from cli.conversation import Conversation
from cli.output import report
from cli.talk_commands import Commands
from db.errors import LatheError

PROMPT, CONTINUATION = ">>> ", "... "
QUOTES = '"""'


class Talk:
    """The loop at the terminal."""

    def __init__(self, client: Client, conversation: Conversation, console: Console) -> None:
        self._client = client
        self._conversation = conversation
        self._console = console
        self._commands = Commands(client, conversation, console)

    def run(self) -> None:
        _complete(self._commands.complete)
        self._console.print(
            f"Talking to [bold]{escape(self._conversation.model)}[/]. Ctrl-C stops an answer, Ctrl-D ends, "
            "/help tells more.",
            style="dim",
        )
        while True:
            try:
                line = read_message()
            except KeyboardInterrupt:
                self._console.print("\nCtrl-D ends.", style="dim")
                continue
            except EOFError:
                self._console.print()
                return
            if not self._take(line):
                return

    def _take(self, line: str) -> bool:
        """Ask what was typed, or do what it commands; False ends the talk."""
        if not line.startswith("/"):
            prompt: str | None = line
        else:
            try:
                order = self._commands.obey(line)
            except LatheError as error:
                report(error)
                return True
            except KeyboardInterrupt:
                self._console.print("Stopped.", style="dim")
                return True
            if order.ends:
                return False
            prompt = order.prompt
        if prompt:
            self._ask(prompt)
        return True

    def _ask(self, prompt: str) -> None:
        answer = Answer(self._console)
        self._commands.unanswered = prompt
        try:
            answer.print(stream_chunks(self._client, self._conversation.body(prompt)))
        except KeyboardInterrupt:
            self._console.print("Stopped.", style="dim")
        except LatheError as error:
            report(error)
            self._console.print("/retry asks it again.", style="dim")
            return
        if answer.text:
            self._conversation.remember(prompt, answer.text)
            self._commands.unanswered = None


def read_message() -> str:
    """Read what is typed up to Enter, or several lines of it.

    Raises:
        EOFError: Ctrl-D.
    """
    line = input(PROMPT)
    if line.strip().startswith(QUOTES):
        return _read_quoted(line.strip().removeprefix(QUOTES))
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input(CONTINUATION))
    return "\n".join(lines).strip()


def _read_quoted(first: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(input(CONTINUATION))
    return "\n".join(lines).rstrip().removesuffix(QUOTES).strip()


def _complete(complete: Callable[[str], list[str]]) -> None:
    """Give `input` line editing and history, and Tab the names of commands."""
    with contextlib.suppress(ImportError):
        import readline

        def at(text: str, state: int) -> str | None:
            found = complete(text) if readline.get_begidx() == 0 else []
            return found[state] if state < len(found) else None

        readline.set_completer_delims(" \t\n")
        readline.set_completer(at)
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
