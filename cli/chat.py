"""`lathe chat`: talk to a model, of this server or of any other that speaks OpenAI's API.

Ctrl-C stops an answer and not the program; Ctrl-D ends it.
"""

import contextlib
import json as jsonlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from cli.client import PAGE_SIZE, Client, connect
from cli.output import JsonFlag, print_json, report, stderr, stdout
from cli.text import harmless
from cli.track import ENDED
from cli.watching import watch_job
from db.errors import InvalidInput, NotFound, Unavailable
from db.params import CHECKPOINT_ID

JSON = dict[str, Any]
PROMPT, CONTINUATION = ">>> ", "... "
QUOTES = '"""'
HELP = '''/reset       forget what was said
/system …    set the system prompt, and forget what was said
/exit        end, as Ctrl-D does
"""          begins and ends a message of several lines
\\            at the end of a line: one more follows'''


@dataclass(frozen=True)
class Part:
    """A piece of an answer, as it arrives."""

    text: str
    is_thought: bool = False


@dataclass
class Conversation:
    """What was said so far, and how the model is to be asked."""

    model: str
    system: str | None = None
    options: JSON = field(default_factory=dict)
    turns: list[JSON] = field(default_factory=list)

    def body(self, prompt: str, *, stream: bool) -> JSON:
        """The request that asks `prompt` in this conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": prompt}]
        return {"model": self.model, "messages": messages, "stream": stream, **self.options}

    def remember(self, prompt: str, answer: str) -> None:
        self.turns += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def chat(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="The model's name: faq, faq:Q8_0, faq@2.", show_default=False),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Ask only this, and end. Without it, and without a terminal, stdin is asked.",
        ),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Another server that speaks OpenAI's API: Ollama, vLLM, llama-server, …"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key for --url. For Lathe's own API, LATHE_API_KEY is sent.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 always takes the likeliest word.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Where to cut an answer off.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Export a checkpoint first without asking.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Talk to a model. With a prompt, or with something piped in, ask once.

    The id of a checkpoint stands for the model that was exported from it; where none was, that is done first.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    conversation = Conversation(model, system, {k: v for k, v in options.items() if v is not None})
    if prompt is None and not sys.stdin.isatty():
        prompt = read_stdin()
    if prompt is None and json:
        raise typer.BadParameter("--json wants a prompt, as an argument or on stdin.")
    with _server(url, api_key) as client:
        if url is None and CHECKPOINT_ID.fullmatch(model):
            export_first(client, model, ask=not yes and sys.stdin.isatty())
        if prompt is None:
            Talk(client, conversation, stdout()).run()
        elif json:
            print_json(client.post("/v1/chat/completions", conversation.body(prompt, stream=False)))
        else:
            Answer(stdout()).print(stream_answer(client, conversation.body(prompt, stream=True)))


def export_first(client: Client, checkpoint: str, *, ask: bool) -> None:
    """Export a checkpoint unless it was, and see it through; on stderr, since the answer is for stdout.

    Raises:
        NotFound: there is no such checkpoint.
        typer.Exit: the export failed, or its user left.
    """
    try:
        client.model(checkpoint)
        return
    except NotFound as error:
        if error.code != "checkpoint_not_exported":
            raise
        console = stderr()
        console.print(harmless(error.message), markup=False, soft_wrap=True)
    if ask:
        typer.confirm(f"Export {checkpoint} now?", default=True, abort=True, err=True)
    exports = client.jobs(kind="export", limit=PAGE_SIZE)
    job = next((row for row in exports if _exports(row, checkpoint)), None)
    if job is None:
        job = client.submit("export", {"checkpoint": checkpoint})
        console.print(f"Exporting it: {job['id']}.", markup=False)
    watch_job(client, job["id"], console=console)


def _exports(job: JSON, checkpoint: str) -> bool:
    return job["params"].get("checkpoint") == checkpoint and job["status"] not in ENDED


def read_stdin() -> str:
    prompt = sys.stdin.read().strip()
    if not prompt:
        raise InvalidInput("There is no prompt: stdin is empty.")
    return prompt


def _server(url: str | None, api_key: str | None) -> Client:
    if url is None:
        return connect()
    # LATHE_API_KEY is for our own server and is shown to no other.
    address = url.rstrip("/").removesuffix("/v1")
    return Client(
        address,
        api_key or "",
        hint="--url names the server's address.",
        key_hint="--api-key gives the key that is sent.",
    )


def stream_answer(client: Client, body: JSON) -> Iterator[Part]:
    """Ask, and yield the answer as it comes.

    Raises:
        Unavailable: the server ended the stream with an error.
    """
    for chunk in stream_chunks(client, body):
        yield from parts_of(chunk)


def stream_chunks(client: Client, body: JSON) -> Iterator[JSON]:
    """Ask, and yield the chunks of the answer.

    Raises:
        Unavailable: the server ended the stream with an error.
    """
    with client.stream("POST", "/v1/chat/completions", body=body) as response:
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                return
            chunk = jsonlib.loads(data)
            if chunk.get("error"):
                raise Unavailable(str(chunk["error"].get("message", chunk["error"])))
            yield chunk


def parts_of(chunk: JSON) -> Iterator[Part]:
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        # What a reasoning model thinks before it answers, by the name that llama-server and vLLM give it.
        if delta.get("reasoning_content"):
            yield Part(delta["reasoning_content"], is_thought=True)
        if delta.get("content"):
            yield Part(delta["content"])


class Answer:
    """An answer while it is printed; `text` is as much of it as has come."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self._console = console
        self._has_begun = False
        self._was_thought = False
        self._waiting = console.status("[dim]…[/]") if console.is_interactive else None

    def print(self, parts: Iterator[Part]) -> None:
        if self._waiting:
            self._waiting.start()
        try:
            for part in parts:
                self._print(part)
        finally:
            if self._waiting:
                self._waiting.stop()
            if self._has_begun:
                self._console.print()

    def _print(self, part: Part) -> None:
        if self._waiting:
            self._waiting.stop()
        if part.is_thought and not self._console.is_interactive:
            return
        self._has_begun = True
        if self._was_thought and not part.is_thought:
            self._console.print("\n")
        self._was_thought = part.is_thought
        self.text += "" if part.is_thought else part.text
        self._console.print(
            Text(harmless(part.text), "dim" if part.is_thought else ""), end="", soft_wrap=True
        )


class Talk:
    """The loop at the terminal."""

    def __init__(self, client: Client, conversation: Conversation, console: Console) -> None:
        self._client = client
        self._conversation = conversation
        self._console = console

    def run(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives input() its line editing and history)

        self._console.print(
            f"Talking to [bold]{escape(self._conversation.model)}[/]. Ctrl-C stops an answer, Ctrl-D ends, "
            "/help tells more.",
            style="dim",
        )
        while True:
            try:
                prompt = read_message()
            except KeyboardInterrupt:
                self._console.print("\nCtrl-D ends.", style="dim")
                continue
            except EOFError:
                self._console.print()
                return
            if prompt.startswith("/"):
                if not self._obey(prompt):
                    return
            elif prompt:
                self._ask(prompt)

    def _obey(self, command: str) -> bool:
        """Do what a command says; False ends the talk."""
        word, _, rest = command.partition(" ")
        if word in ("/exit", "/quit", "/bye"):
            return False
        if word in ("/reset", "/system"):
            if word == "/system":
                self._conversation.system = rest.strip() or None
            self._conversation.turns.clear()
            self._console.print("Begun anew.", style="dim")
        else:
            self._console.print(HELP, style="dim", markup=False)
        return True

    def _ask(self, prompt: str) -> None:
        answer = Answer(self._console)
        parts = stream_answer(self._client, self._conversation.body(prompt, stream=True))
        try:
            answer.print(parts)
        except KeyboardInterrupt:
            self._console.print("Stopped.", style="dim")
        except Unavailable as error:
            report(error)
            return
        if answer.text:
            self._conversation.remember(prompt, answer.text)


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
