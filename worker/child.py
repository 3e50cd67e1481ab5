"""A step's processes, as its worker sees them: started, listened to, and ended as one group."""

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog

from worker.launch import Given, Launch, Spawned
from worker.processes import kill_marked, signal_group
from worker.step import Message, StepInput

TERM_GRACE_SECONDS = 4.0
LOG_MAX_BYTES = 16 * 1024**2
TAIL_BYTES = 8 * 1024
LINE_MAX_BYTES = 16 * 1024**2
READ_BYTES = 1 << 16

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Exit:
    """How the process ended: by itself, or by a signal."""

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return f"signal {self.signal} ({signal.Signals(self.signal).name})"
        except ValueError:
            return f"signal {self.signal}"


class Child:
    """One attempt's process group. `exit` is None while its first process lives.

    Args:
        module: the step's module; its `run` does the work.
        deadline: by `host_seconds`; the group ends itself then, unless `renew` comes before.
        marker: the attempt, for the processes' environment.
        environment: what the processes get in theirs besides.
        log_path: takes what the group prints.
        launch: how its first process comes to be.
    """

    def __init__(
        self,
        module: str,
        step_input: StepInput,
        *,
        deadline: float,
        marker: str,
        log_path: Path,
        environment: Mapping[str, str],
        launch: Launch = Spawned,
    ) -> None:
        self._marker = marker
        self._printed = _Printed(log_path)
        self._partial = b""
        self.exit: Exit | None = None
        orders_read, orders = os.pipe()
        output, output_written = os.pipe()
        messages, messages_written = os.pipe()
        given = Given(orders=orders_read, printed=output_written, told=messages_written)
        self._orders = os.fdopen(orders, "wb", buffering=0)
        self._printed_by_group = os.fdopen(output, "rb", buffering=0)
        self._told = os.fdopen(messages, "rb", buffering=0)
        self._output = output
        try:
            self._process = launch(module, marker, environment, given)
        except OSError:
            self._close_pipes()
            raise
        finally:
            given.close()
        self.pid = self._process.pid
        self._selector = selectors.DefaultSelector()
        for descriptor in (messages, output):
            os.set_blocking(descriptor, False)
        for descriptor in (messages, output, self._process.life):
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._order({"input": json.loads(step_input.to_json()), "deadline": deadline})

    @property
    def tail(self) -> str:
        """The end of what the group printed."""
        return self._printed.tail.decode("utf-8", errors="replace")

    def renew(self, deadline: float) -> None:
        self._order({"deadline": deadline})

    def listen(self, seconds: float) -> list[Message]:
        """Wait up to `seconds` for something to happen, and give the messages that came."""
        messages: list[Message] = []
        for key, _ in self._selector.select(seconds) if self.exit is None else ():
            if key.fd == self._process.life:
                self._notice_exit()
            else:
                messages += self._read(key.fd)
        if self.exit is not None:
            for descriptor in [key.fd for key in self._selector.get_map().values()]:
                messages += self._read(descriptor, everything=True)
        return messages

    def ask_to_stop(self) -> None:
        """Send the whole group SIGTERM: a step that heeds it saves what it has, others end."""
        signal_group(self.pid, signal.SIGTERM)
        # A stopped process gets it only once it goes on.
        signal_group(self.pid, signal.SIGCONT)

    def end(self, grace_seconds: float = TERM_GRACE_SECONDS) -> list[Message]:
        """End the whole group: SIGTERM, then SIGKILL to what is left. Gives the last messages."""
        messages: list[Message] = []
        deadline = time.monotonic() + grace_seconds
        if self.exit is None:
            self.ask_to_stop()
        while self.exit is None and time.monotonic() < deadline:
            messages += self.listen(0.1)
        if self.exit is None:
            signal_group(self.pid, signal.SIGKILL)
        while self.exit is None:
            messages += self.listen(0.1)
        return messages

    def close(self) -> None:
        """Kill whatever is left of the attempt, in any session, and let go of the pipes."""
        if self.exit is None:
            self.end(0)
        left = kill_marked({self._marker})
        if left:
            log.warning("processes_left_behind", attempt=self._marker, killed=left)
        self._selector.close()
        self._close_pipes()
        self._printed.close()

    def _close_pipes(self) -> None:
        for file in (self._orders, self._printed_by_group, self._told):
            file.close()

    def _order(self, order: dict[str, object]) -> None:
        line = memoryview(json.dumps(order).encode() + b"\n")
        # It may have ended, which will be noticed.
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[self._orders.write(line) :]

    def _notice_exit(self) -> None:
        self._selector.unregister(self._process.life)
        code = self._process.ended()
        if code is not None:
            self.exit = Exit(code, None) if code >= 0 else Exit(None, -code)

    def _read(self, descriptor: int, *, everything: bool = False) -> list[Message]:
        messages: list[Message] = []
        while True:
            try:
                chunk = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                return messages
            if not chunk:
                self._selector.unregister(descriptor)
                return messages
            if descriptor == self._output:
                self._printed.add(chunk)
            else:
                messages += self._split(chunk)
            if not everything:
                return messages

    def _split(self, chunk: bytes) -> list[Message]:
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > LINE_MAX_BYTES:
            self._partial = b""
            log.warning("message_too_long", attempt=self._marker)
        messages = []
        for line in lines:
            try:
                messages.append(json.loads(line))
            except ValueError:
                log.warning("message_unreadable", attempt=self._marker, line=line[:200])
        return messages


class _Printed:
    """What a group printed: a file of bounded size, and its end in memory."""

    def __init__(self, path: Path) -> None:
        self.tail = b""
        self._left = LOG_MAX_BYTES
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO | None = path.open("wb", buffering=0)

    def add(self, chunk: bytes) -> None:
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        if self._file is None:
            return
        kept = chunk[: self._left]
        self._left -= len(kept)
        try:
            self._file.write(kept)
            if len(kept) < len(chunk):
                self._file.write(b"\n[the rest of the output was not kept]\n")
                self.close()
        except OSError:
            # A full disk must not take the worker along; the step itself will say that it is full.
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
