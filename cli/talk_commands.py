"""What a line that begins with / does in `lathe chat`."""

import base64
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cli.client import Client
from cli.conversation import PARAMETERS, Conversation, read_parameter
from cli.text import harmless
from db.errors import InvalidInput
from db.wording import counted

JSON = dict[str, Any]
NONE = "none"
# Terminals refuse more for their clipboard, or hang on it.
MOST_COPIED_BYTES = 74_000


@dataclass(frozen=True)
class Order:
    """What comes after a command: a prompt to be asked, or the end."""

    prompt: str | None = None
    ends: bool = False


@dataclass(frozen=True)
class Command:
    usage: str
    meaning: str
    do: Callable[["Commands", str], Order | None]


class Commands:
    """Obeys commands. `unanswered` is what was asked last, if nothing came of it."""

    def __init__(self, client: Client, conversation: Conversation, console: Console) -> None:
        self.unanswered: str | None = None
        self._client = client
        self._conversation = conversation
        self._console = console
        self._own_file: Path | None = None  # which /save may write again

    def obey(self, line: str) -> Order:
        """Do what a line says.

        Raises:
            LatheError: there is no such command, it does not take that, or the server refuses it.
        """
        word, _, rest = line.partition(" ")
        command = BY_NAME.get(word)
        if command is None:
            raise InvalidInput(f"There is no {word}. /help lists what there is.")
        return command.do(self, rest.strip()) or Order()

    def complete(self, text: str) -> list[str]:
        return [name for name in BY_NAME if name.startswith(text)] if text.startswith("/") else []

    def _say(self, text: str) -> None:
        self._console.print(harmless(text), style="dim", markup=False, soft_wrap=True)

    # --- what each does -----------------------------------------------------------------------------------

    def help(self, rest: str) -> None:
        width = max(len(command.usage) for command in COMMANDS)
        lines = [f"{command.usage:<{width}}  {command.meaning}" for command in COMMANDS]
        self._say("\n".join(lines))
        self._say(
            '"""           begins and ends a message of several lines\n'
            "\\             at the end of a line: one more follows\n"
            "Ctrl-C        stops an answer; Ctrl-D ends"
        )

    def model(self, rest: str) -> None:
        if rest:
            self._client.model(rest)  # refuses an unknown one here, and not the next question
            self._conversation.model = rest
        self._say(f"Talking to {self._conversation.model}.")

    def models(self, rest: str) -> None:
        for row in self._client.models():
            if row.get("type", "chat") == "chat":
                mark = "*" if row["id"] == self._conversation.model else " "
                state = "" if row.get("status", "ready") == "ready" else f"  ({row['status']})"
                self._say(f"{mark} {row['id']}{state}")

    def system(self, rest: str) -> None:
        if rest:
            self._conversation.system = None if rest.lower() == NONE else rest
        self._say(f"System prompt: {self._conversation.system or NONE}")

    def set(self, rest: str) -> None:
        name, _, value = rest.removeprefix("parameter ").strip().partition(" ")
        if name == "system" and value:
            self.system(value.strip('"'))
            return
        if name:
            known, read = read_parameter(name, value.strip())
            if read is None:
                self._conversation.options.pop(known, None)
            else:
                self._conversation.options[known] = read
        options = self._conversation.options
        for known in PARAMETERS:
            if not name or known in options:
                self._say(f"{known} {options.get(known, 'default')}")

    def collections(self, rest: str) -> None:
        rows = list(self._client.pages("/v1/vector_stores"))
        if rest:
            chosen = [] if rest.lower() == NONE else _words(rest)
            known = {name for row in rows for name in (row["id"], row["name"])}
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise InvalidInput(f"There is no collection {', '.join(unknown)}.")
            self._conversation.collections = chosen
        for row in rows:
            is_chosen = {row["id"], row["name"]} & set(self._conversation.collections)
            self._say(f"{'*' if is_chosen else ' '} {row['name'] or row['id']}")
        if not rows:
            self._say("There are no collections yet: `lathe ingest FILES --collection NAME` makes one.")

    def documents(self, rest: str) -> None:
        if rest.lower() not in ("", "on", "off"):
            raise InvalidInput("/documents takes `on` or `off`: whether the model's own are asked.")
        if rest:
            self._conversation.own_documents = rest.lower() == "on"
        self._say(f"The model's own documents: {'on' if self._conversation.own_documents else 'off'}")

    def save(self, rest: str) -> None:
        path = _path(rest, "/save")
        if path.exists() and path != self._own_file:
            raise InvalidInput(f"{path} is there already: give another name.")
        self._conversation.save(path)
        self._own_file = path
        self._say(f"Saved {self._length()} to {path}.")

    def load(self, rest: str) -> None:
        path = _path(rest, "/load")
        self._conversation.load(path)
        self._own_file, self.unanswered = path, None
        self._say(f"Loaded {self._length()} from {path}.")
        answer = self._conversation.last_answer()
        if answer:
            self._console.print(harmless(answer), markup=False, soft_wrap=True)

    def _length(self) -> str:
        return counted(len(self._conversation.turns), "message")

    def retry(self, rest: str) -> Order:
        prompt = self.unanswered or self._conversation.forget_last()
        if prompt is None:
            raise InvalidInput("Nothing was asked yet.")
        return Order(prompt=prompt)

    def copy(self, rest: str) -> None:
        answer = self._conversation.last_answer()
        if answer is None:
            raise InvalidInput("There is no answer to copy yet.")
        if len(answer.encode()) > MOST_COPIED_BYTES:
            raise InvalidInput("The answer is too long for a terminal's clipboard: /save FILE keeps it.")
        # OSC 52, which reaches the clipboard of whoever sits at the terminal, through ssh too.
        sys.stdout.write(f"\x1b]52;c;{base64.b64encode(answer.encode()).decode()}\x07")
        sys.stdout.flush()
        self._say("Copied, if your terminal lets programs do that (OSC 52).")

    def reset(self, rest: str) -> None:
        self._conversation.turns.clear()
        self.unanswered = None
        self._say("Begun anew.")

    def exit(self, rest: str) -> Order:
        return Order(ends=True)


def _words(text: str) -> list[str]:
    """The words of a line; quotes hold several together."""
    try:
        return shlex.split(text)
    except ValueError:
        raise InvalidInput(f"A quote has no end: {text}") from None


def _path(rest: str, command: str) -> Path:
    if not rest:
        raise InvalidInput(f"{command} takes the name of a file.")
    return Path(rest).expanduser()


COMMANDS = (
    Command("/help", "this list", Commands.help),
    Command("/models", "what can be asked", Commands.models),
    Command("/model [NAME]", "talk to another one, and keep what was said", Commands.model),
    Command("/system [TEXT]", "the system prompt; none takes it away", Commands.system),
    Command("/set [PARAM VALUE]", "temperature, max_tokens, seed, …; default takes one back", Commands.set),
    Command("/collections [NAME …]", "answer from these; none ends that", Commands.collections),
    Command("/documents [on|off]", "answer from the model's own documents", Commands.documents),
    Command("/retry", "ask the last question again", Commands.retry),
    Command("/copy", "put the last answer on the clipboard", Commands.copy),
    Command("/save FILE", "keep the conversation, as JSON", Commands.save),
    Command("/load FILE", "go on with one that was saved, or exported by the chat page", Commands.load),
    Command("/reset", "forget what was said", Commands.reset),
    Command("/exit", "end, as Ctrl-D does", Commands.exit),
)
ALIASES = {
    "/?": "/help", "/clear": "/reset", "/regen": "/retry", "/quit": "/exit", "/bye": "/exit",
}  # fmt: skip
BY_NAME = {command.usage.split()[0]: command for command in COMMANDS}
BY_NAME |= {alias: BY_NAME[name] for alias, name in ALIASES.items()}
