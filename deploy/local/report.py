"""What a person sees while the stack starts: lines, a spinner on a terminal, or both over a pipe.

`lathe up --detach` starts the supervisor in the background with a `PipeReporter`, and replays what
comes out of the pipe into the reporter of its own terminal.
"""

import contextlib
import json
import sys
import time
from typing import IO, Any, Protocol

from rich.console import Console
from rich.status import Status


class Reporter(Protocol):
    def working(self, what: str) -> None:
        """Something that takes a while has begun."""

    def done(self, what: str, detail: str = "") -> None:
        """It has ended well."""

    def line(self, text: str) -> None:
        """Output of something that is at work."""

    def problem(self, text: str) -> None: ...

    def finished(self, facts: dict[str, Any]) -> None:
        """The stack is ready; the facts say where to find it."""

    def close(self) -> None:
        """Nothing more comes."""


class PlainReporter:
    """Lines without colour, for a file or a service's journal."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self._out = out or sys.stdout
        self._begun = time.monotonic()

    def working(self, what: str) -> None:
        self._begun = time.monotonic()

    def done(self, what: str, detail: str = "") -> None:
        self._print(f"  {what:<18} {detail}".rstrip())

    def line(self, text: str) -> None:
        self._print(f"    {text}")

    def problem(self, text: str) -> None:
        self._print(text)

    def finished(self, facts: dict[str, Any]) -> None:
        for name, value in facts.items():
            self._print(f"{name:<8} {value}")

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class TerminalReporter:
    """A line for each part that is ready, and a spinner for what is being waited for."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._status: Status | None = None

    def working(self, what: str) -> None:
        if self._status is None:
            self._status = self._console.status(what, spinner="dots")
            self._status.start()
        self._status.update(what)

    def done(self, what: str, detail: str = "") -> None:
        self._console.print(f"[green]✓[/] {what:<18} [dim]{detail}[/]")

    def line(self, text: str) -> None:
        self._console.print(f"    {text}", style="dim", markup=False)

    def problem(self, text: str) -> None:
        self.close()
        self._console.print(text, style="red", markup=False)

    def finished(self, facts: dict[str, Any]) -> None:
        self.close()
        self._console.print()
        for name, value in facts.items():
            self._console.print(f"[bold]{name:<8}[/] {value}", soft_wrap=True)

    def close(self) -> None:
        """Take the spinner away, and give the cursor back."""
        if self._status is not None:
            self._status.stop()
            self._status = None


class PipeReporter:
    """Each call as a line of JSON. Whoever listens may go away; that stops nothing."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe: IO[str] | None = pipe

    def working(self, what: str) -> None:
        self._send("working", what)

    def done(self, what: str, detail: str = "") -> None:
        self._send("done", what, detail)

    def line(self, text: str) -> None:
        self._send("line", text)

    def problem(self, text: str) -> None:
        self._send("problem", text)

    def finished(self, facts: dict[str, Any]) -> None:
        self._send("finished", facts)
        self.close()

    def close(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                self._pipe.close()
            self._pipe = None

    def _send(self, call: str, *arguments: Any) -> None:
        if self._pipe is None:
            return
        try:
            self._pipe.write(json.dumps([call, *arguments]) + "\n")
            self._pipe.flush()
        except OSError:
            self._pipe = None


def replay(pipe: IO[str], reporter: Reporter) -> bool:
    """Show what a `PipeReporter` sends until it ends; returns whether the stack became ready."""
    ready = False
    for text in pipe:
        call, *arguments = json.loads(text)
        if call == "finished":
            ready = True
        getattr(reporter, call)(*arguments)
    reporter.close()
    return ready


def for_terminal() -> Reporter:
    return TerminalReporter() if sys.stdout.isatty() else PlainReporter()
