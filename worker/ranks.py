"""A step's work done by several processes of this machine together, its **ranks**.

The step's own process starts them and does none of the work, so that nothing that hangs there can keep it
from noticing. What the first rank says, it says on; what all of them print, it prints on. Whichever falls
ends all. torchrun is not used: a SIGTERM means "save" here, and to be tried again is the platform's affair.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, cast

from db.settings import child_environment
from worker.step import Message, RankFailed, Step
from worker.step_process import LAST_WORDS, result_of

LISTEN_SECONDS = 0.25
ALONE = ("refused", "unavailable", "exhausted", "failed")  # words of one that end all
READ_BYTES = 1 << 16
LINES_TOLD = 5
LAST_CHARACTERS = 500
# Where ranks of one machine find each other: nothing has to be resolved, and nothing outside can reach it.
ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1"}


def run_ranks(
    step: Step,
    count: int,
    module: str,
    work: dict[str, Any],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Have `module.run_rank(step, work)` run by `count` processes, which share the step's threads.

    Args:
        environment: what they are told beside where they are.

    Returns:
        what the first one returned.
    Raises:
        RankFailed: one fell.
        Stopped, InvalidInput, Unavailable, Exhausted, MemoryError, StepFailed: one ended so.
    """
    # The first rank decides when all stop. Until it heeds the request, that ends it, and all with it.
    step.save_when_stopped()
    settings = replace(step.input.settings, threads=max(1, step.input.settings.threads // count))
    given = json.loads(replace(step.input, settings=settings).to_json())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lathe-ranks-")))
        order = {"input": given, "work": work, "rendezvous": str(folder / "rendezvous")}
        ranks = _Ranks(step, environment)
        stack.callback(ranks.close)
        for number in range(count):
            ranks.start(number, count, module, json.dumps(order, default=str).encode() + b"\n")
        return ranks.listen()


@dataclass
class _Rank:
    """One of the processes.

    Args:
        told, printed: the pipes that its messages, and what it prints, come through.
        unfinished: of each that is open, the beginning of a line.
        ending: its last message; None while there is none.
    """

    number: int
    process: subprocess.Popen[bytes]
    told: BinaryIO
    printed: BinaryIO
    unfinished: dict[int, bytes] = field(default_factory=dict)
    last_lines: list[str] = field(default_factory=list)
    ending: Message | None = None

    def read(self, descriptor: int) -> list[bytes]:
        """The lines that there are now; at its end the last one, though nothing ends it."""
        lines: list[bytes] = []
        while descriptor in self.unfinished:
            try:
                chunk = os.read(descriptor, READ_BYTES)
            except BlockingIOError:
                break
            *whole, rest = (self.unfinished[descriptor] + chunk).split(b"\n")
            lines += whole
            self.unfinished[descriptor] = rest
            if not chunk:
                lines += [rest] if rest else []
                del self.unfinished[descriptor]
        return lines


class _Ranks:
    """Those of one step, listened to until they have ended."""

    def __init__(self, step: Step, environment: Mapping[str, str]) -> None:
        self._step = step
        self._environment = environment
        self._ranks: list[_Rank] = []
        self._selector = selectors.DefaultSelector()
        self._passed_on = False

    def start(self, number: int, count: int, module: str, order: bytes) -> None:
        messages, given = os.pipe()
        argv = [sys.executable, "-m", "worker.run_rank", "--module", module, "--pipe", str(given)]
        argv += ["--parent", str(os.getpid()), "--rank", str(number), "--ranks", str(count)]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(given,),
                env=child_environment({**self._environment, **_place(number, count)}),
            )
        except OSError:
            os.close(messages)
            raise
        finally:
            os.close(given)
        told, printed = os.fdopen(messages, "rb", buffering=0), cast(BinaryIO, process.stdout)
        rank = _Rank(number, process, told, printed)
        self._ranks.append(rank)
        for file in (told, printed):
            os.set_blocking(file.fileno(), False)
            rank.unfinished[file.fileno()] = b""
            self._selector.register(file, selectors.EVENT_READ, rank)
        # It may have fallen already, which will be noticed.
        with contextlib.suppress(BrokenPipeError), cast(BinaryIO, process.stdin) as stdin:
            stdin.write(order)

    def listen(self) -> dict[str, Any]:
        while True:
            self._pass_on()
            for key, _ in self._selector.select(LISTEN_SECONDS):
                self._read(key.data, key.fd)
            codes = {rank.number: rank.process.poll() for rank in self._ranks}
            for rank in self._ranks:
                if codes[rank.number] is not None:
                    for descriptor in tuple(rank.unfinished):
                        self._read(rank, descriptor)
            # What one cannot go on with ends all. That all stop, or are done, the first one says.
            words = [rank.ending for rank in self._ranks if rank.ending is not None]
            alone = next((word for word in words if word["type"] in ALONE), None)
            if alone is not None:
                return result_of(alone)
            # Those that lose one that was killed fall too, and by themselves.
            fallen = sorted(
                (rank for rank in self._ranks if codes[rank.number]), key=lambda rank: rank.number
            )
            if fallen:
                raise self._failure(min(fallen, key=lambda rank: (codes[rank.number] or 0) > 0), codes)
            if all(code == 0 for code in codes.values()):
                return result_of(cast(Message, self._ranks[0].ending))

    def close(self) -> None:
        """Kill whatever is left."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.wait()
            rank.told.close()
            rank.printed.close()
        self._selector.close()

    def _pass_on(self) -> None:
        """Have the first rank know that the step is to stop; the worker's signal reaches it by itself."""
        if self._step.stop_asked and not self._passed_on:
            self._passed_on = True
            self._ranks[0].process.send_signal(signal.SIGTERM)

    def _read(self, rank: _Rank, descriptor: int) -> None:
        for line in rank.read(descriptor):
            if descriptor == rank.printed.fileno():
                self._print(rank, line.decode("utf-8", errors="replace"))
            else:
                self._hear(rank, json.loads(line))
        if descriptor not in rank.unfinished:
            self._selector.unregister(descriptor)

    def _hear(self, rank: _Rank, message: Message) -> None:
        if message["type"] in LAST_WORDS:
            rank.ending = message
        else:
            self._step.relay(message)

    def _print(self, rank: _Rank, line: str) -> None:
        if line.strip():
            rank.last_lines = [*rank.last_lines, line.strip()][-LINES_TOLD:]
        sys.stdout.write(f"[rank {rank.number}] {line}\n")
        sys.stdout.flush()

    def _failure(self, rank: _Rank, codes: Mapping[int, int | None]) -> RankFailed:
        code = codes[rank.number] or 0
        number = -code if code < 0 else None
        how = f"exit code {code}" if number is None else f"signal {number} ({signal.Signals(number).name})"
        lines = rank.last_lines[-1:] if number is None else rank.last_lines
        last = f": {' | '.join(lines)[-LAST_CHARACTERS:]}" if lines else ""
        message = f"Rank {rank.number} of the {len(self._ranks)} that work together ended by {how}{last}"
        return RankFailed(message, exit_code=code if number is None else None, signal=number)


def _place(number: int, count: int) -> Mapping[str, str]:
    """Which one it is, as torch and accelerate read it."""
    return {
        **ENVIRONMENT,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
