"""A step's process: `python -m worker.run_step --module MODULE --pipe FD`, or a fork of `worker.fork_server`.

The process splits in two. The guard stays small and watches: when the worker's end of stdin closes, or
the lease's deadline passes, it kills the whole process group, itself included. The other half runs the
step; no import, no C extension and no lock of it can keep the guard from its work.

stdin brings JSON lines from the worker: first {"input", "deadline"}, then {"deadline"} at each renewal.
The pipe takes JSON lines to the worker: what `worker.step.Step` sends, and how it ended.
"""

import argparse
import importlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from db.disk import file_sha256, flush
from worker.clock import host_seconds
from worker.step import Step, StepInput
from worker.step_process import EXIT_CODES, die_with, end_like, heed_sigterm, message_sender, outcome
from worker.trackers import Trackers

MANIFEST = "manifest.json"
STDIN = 0


class WorkerGone(Exception):
    """The worker closed its end."""


class Orders:
    """Lines from the worker, read without a buffer that a fork would copy."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._read = b""

    def read(self) -> list[dict[str, Any]]:
        """Wait for bytes, and give the lines that they complete.

        Raises:
            WorkerGone: there will be no more.
        """
        chunk = os.read(self._descriptor, 1 << 16)
        if not chunk:
            raise WorkerGone
        *lines, self._read = (self._read + chunk).split(b"\n")
        return [json.loads(line) for line in lines]


def main() -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("--module", required=True)
    parser.add_argument("--pipe", type=int, required=True)
    options = parser.parse_args()
    serve_step(options.module, options.pipe)


def serve_step(module: str, pipe: int, ended: int | None = None) -> NoReturn:
    """Split in two, and run the step that stdin names: this process leads a session of its own.

    Args:
        ended: takes how the step's process ended, as `Popen.returncode` has it, where the worker cannot wait
            for this one; the group is killed then.
    """
    # A core dump of a process that holds a model would fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    orders = Orders(STDIN)
    try:
        lines = orders.read()
        while not lines:
            lines = orders.read()
    except WorkerGone:
        os._exit(1)
    child_ended = _watch_children()
    guard = os.getpid()
    step_process = os.fork()
    if step_process == 0:
        _leave_guarding(guard)
        if ended is not None:
            os.close(ended)
        _run(module, StepInput.from_json(json.dumps(lines[0]["input"])), pipe)
    os.close(pipe)
    code = _guard(step_process, child_ended, orders, lines[-1]["deadline"])
    if ended is not None:
        os.write(ended, str(code).encode())
        os.killpg(os.getpid(), signal.SIGKILL)
    end_like(code)


def _watch_children() -> int:
    """A descriptor that becomes readable when a child ends.

    A pipe that the step's process holds would not do: whatever it forks would hold it too.
    """
    readable, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return readable


def _guard(step_process: int, ended: int, orders: Orders, deadline: float) -> int:
    """Watch until the step's process ends, and give how; kill all when the worker is gone or late."""
    # To end by it is the step's affair; the guard has to stay for as long as it takes.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        readable, _, _ = select.select([STDIN, ended], [], [], max(0.0, deadline - host_seconds()))
        if ended in readable:
            os.read(ended, 1 << 10)
            pid, status = os.waitpid(step_process, os.WNOHANG)
            if pid == step_process:
                return os.waitstatus_to_exitcode(status)
        try:
            if STDIN in readable:
                for order in orders.read():
                    deadline = order["deadline"]
        except WorkerGone:
            deadline = 0.0
        if host_seconds() >= deadline:
            os.killpg(os.getpid(), signal.SIGKILL)


def _leave_guarding(guard: int) -> None:
    """Be the step's process from now on, which never outlives the guard."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with(guard)


def _run(module: str, step_input: StepInput, pipe: int) -> NoReturn:
    """Run the step, say how it ended, and leave without waiting for threads that libraries left."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), STDIN)
    send = message_sender(pipe)
    code = 1
    try:
        trackers = Trackers(step_input, send)
        step = Step(step_input, send, heed_sigterm, trackers.log)
        ending = outcome(lambda: _done(module, step))
        trackers.close(stopping=step.stop_asked)
        code = EXIT_CODES.get(ending["type"], 0)
        send(ending)
        code = -ending["signal"] if ending.get("signal") else code
    except BaseException:  # noqa: BLE001 - the edge of the process: the traceback is its last word
        code = 1
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        end_like(code)


def _done(module: str, step: Step) -> dict[str, Any]:
    result: dict[str, Any] = importlib.import_module(module).run(step)
    write_manifest(step.input.folder)
    return result


def write_manifest(folder: Path) -> None:
    """List every file of an attempt's folder with its size and sha256; written beside, then renamed."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    beside = folder / f".{MANIFEST}"
    beside.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    flush(beside)
    beside.rename(folder / MANIFEST)


if __name__ == "__main__":
    main()
