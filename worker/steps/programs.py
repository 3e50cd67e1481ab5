"""Run llama.cpp's programs from a step: their output as it comes, the end of it when they fail.

They stay in the step's own process group, so that cancelling the step, or its death, ends them too.
"""

import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from db.errors import Exhausted, StepFailed
from serving.llama_cpp import Tools, model_server_argv
from serving.local_port import free_port
from worker.step import Step

if TYPE_CHECKING:
    from serving.openai_compatible import LlamaServer

LINES_OF_AN_ERROR = 40
START_TIMEOUT_SECONDS = 600  # a large model is read from a slow disk
START_TRIES = 3


def run_program(
    argv: list[str], what: str, on_line: Callable[[str], None], *, folder: Path | None = None
) -> list[str]:
    """Run a program to its end, handing each line of its output to `on_line`.

    There is no timeout: how long a model takes depends on its size. `on_line` is expected to report
    progress, which the stall limit watches.

    Args:
        folder: where it runs, and finds what the argv names without a folder.

    Returns:
        the last lines.

    Raises:
        Exhausted: the disk is full.
        StepFailed: the program failed; the error holds the end of its output.
    """
    tail: deque[str] = deque(maxlen=LINES_OF_AN_ERROR)
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, errors="replace", cwd=folder,
    ) as process:  # fmt: skip
        for line in process.stdout or ():
            tail.append(line.rstrip())
            on_line(line)
        status = process.wait()
    if status:
        output = "\n".join(tail)
        sys.stderr.write(f"{output}\n")  # the end of stderr is what the attempt's row keeps
        if "No space left on device" in output:
            raise Exhausted(f"The disk is full: {what} stopped.", code="disk_full")
        raise StepFailed(
            f"{what} failed: {next((line for line in reversed(tail) if line), 'it printed nothing')}",
            exit_code=status if status > 0 else None,
            signal=-status if status < 0 else None,
            stderr=output,
        )
    return list(tail)


@dataclass(frozen=True)
class ServedFile:
    """What a server is given to answer with.

    Args:
        model: a whole model as a GGUF file, or a base.
        adapter: as another, which is added to the base when it is served.
    """

    model: Path
    adapter: Path | None = None

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.model, self.adapter) if path is not None)

    @property
    def name(self) -> str:
        beside = f" with {self.adapter.name}" if self.adapter is not None else ""
        return f"{self.model.name}{beside}"


@contextmanager
def model_server(
    step: Step, tools: Tools, file: ServedFile, *, context: int, slots: int, log: Path
) -> "Iterator[LlamaServer]":
    """Serve a file on a free port of the loopback, for as long as the context lasts.

    Args:
        context: tokens that each of the `slots` can hold.
        log: where the server's output goes.

    Raises:
        StepFailed: the server cannot load the file; the error holds the end of its output.
    """
    # Half a second, with all that can ask: not for who runs programs that answer nothing.
    from serving.openai_compatible import LlamaServer

    settings = step.input.settings
    for _ in range(START_TRIES):
        port = free_port()
        argv = model_server_argv(
            tools, file.model, port=port, threads=settings.threads, n_gpu_layers=settings.n_gpu_layers,
            context=context, slots=slots, adapter=file.adapter,
        )  # fmt: skip
        with log.open("w") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            with LlamaServer(f"http://127.0.0.1:{port}") as server:
                # Between our look for a free port and its use, another program may have taken it.
                if _wait_until_ready(server, process, log, file.name):
                    yield server
                    return
        finally:
            _end(process)
    raise StepFailed(f"llama-server found no free port in {START_TRIES} tries.")


def _wait_until_ready(
    server: "LlamaServer", process: "subprocess.Popen[bytes]", log: Path, name: str
) -> bool:
    """Wait for the model to be loaded; False when the port was taken."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            output = log.read_text(errors="replace")
            if "couldn't bind" in output:
                return False
            end = "\n".join(output.splitlines()[-LINES_OF_AN_ERROR:])
            sys.stderr.write(f"{end}\n")
            raise StepFailed(
                f"llama-server cannot serve {name}.",
                exit_code=process.returncode if process.returncode > 0 else None,
                signal=-process.returncode if process.returncode < 0 else None,
                stderr=end,
            )
        if server.is_ready():
            return True
        time.sleep(0.03)
    raise StepFailed(f"llama-server did not load {name} within {START_TIMEOUT_SECONDS} s.")


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
