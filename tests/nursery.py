"""Python programs that would each import the same for seconds: forked from a process that holds it.

`python -m tests.nursery --socket FD MODULE …`, started by `Nursery`. What tests start through it is a process
like any other, but that its parent is the nursery, and /proc tells the nursery's command and environment.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

REPOSITORY = Path(__file__).parents[1]
MESSAGE_BYTES = 1 << 17
NO_STATUS = -signal.SIGKILL  # of a program whose nursery has gone


class Child:
    """A program that was forked, with what tests need of `subprocess.Popen`."""

    def __init__(self, pid: int, ended: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = ended

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], seconds)[0]:
            with os.fdopen(self._ended, "rb") as said:
                self.returncode = int(said.read() or NO_STATUS)
        return self.returncode


class Nursery:
    """Forks programs from a process that has imported `modules`; it is started with the first of them."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], log: IO[bytes]) -> Child:
        """Run `argv` (a script and its arguments, or `-m`, a module and its) with its output in `log`."""
        if self._socket is None:
            self._socket = self._begin()
        ended, said = os.pipe()
        request = json.dumps({"argv": list(argv), "env": dict(env)}).encode()
        socket.send_fds(self._socket, [request], [log.fileno(), said])
        os.close(said)
        return Child(int(self._socket.recv(MESSAGE_BYTES)), ended)

    def close(self) -> None:
        """Let go of the process, which ends. What it has forked stays."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait(15)

    def _begin(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", "--socket", str(its.fileno()), *self._modules],
                pass_fds=(its.fileno(),),
                cwd=REPOSITORY,
            )
        return ours


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("modules", nargs="*")
    options = parser.parse_args()
    for module in options.modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=options.socket) as asking:
        program = _serve(asking)
    if program is not None:
        _become(*program)


def _serve(asking: socket.socket) -> tuple[list[str], int] | None:
    """Fork what is asked for until nobody asks. Returns in each that is forked: its argv and its output."""
    children: dict[int, int] = {}
    # Written to when a child ends, which wakes `select`.
    woken, waking = os.pipe()
    for end in (woken, waking):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    while True:
        readable, _, _ = select.select([asking, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _tell_of_ended(children)
        if asking not in readable:
            continue
        data, descriptors, _, _ = socket.recv_fds(asking, MESSAGE_BYTES, 2)
        if not data:
            return None
        request, (log, said) = json.loads(data), descriptors
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (woken, waking, said, *children.values()):
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(request["env"])
            return request["argv"], log
        children[pid] = said
        os.close(log)
        asking.send(str(pid).encode())


def _tell_of_ended(children: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):  # there is none left
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            with os.fdopen(children.pop(pid), "wb") as said:
                said.write(str(os.waitstatus_to_exitcode(status)).encode())


def _become(argv: list[str], log: int) -> NoReturn:
    """Run a program in this process, as the interpreter would by its command."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for standard in (1, 2):
        os.dup2(log, standard)
    os.close(log)
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
    sys.exit()


# Those of this process's tests.
WORKERS = Nursery(
    "worker.serve", "worker.tasks", "celery.apps.worker", "celery.worker", "celery.concurrency.thread"
)
APIS = Nursery("api.app", "uvicorn")

if __name__ == "__main__":
    main()
