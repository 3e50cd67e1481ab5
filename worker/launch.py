"""How a step's first process comes to be: forked from a process that is warm, or as a new interpreter."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from db.settings import step_environment
from worker.fork_server import MESSAGE_BYTES, UNMARKED

FORK_SECONDS = 5.0
# What a fork server gets besides. No GPU, since CUDA that was begun before a fork does not work after it; and
# no threads of numpy's OpenBLAS, nor of the jemalloc that pyarrow brings.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Given:
    """The step's ends of the pipes between it and its worker, as descriptors.

    Args:
        orders: what it reads from the worker.
        printed: what it and its group print.
        told: its messages.
    """

    orders: int
    printed: int
    told: int

    def close(self) -> None:
        for descriptor in (self.orders, self.printed, self.told):
            os.close(descriptor)


class FirstProcess(Protocol):
    """The leader of a step's process group.

    Args:
        life: a descriptor that is readable once it has ended; `ended` closes it then.
    """

    pid: int
    life: int

    def ended(self) -> int | None:
        """How it ended: its exit code, or the negative number of a signal; None while it lives.

        Asked no more once it has been told.
        """


# Starts the process of a module for an attempt, with changes of its environment.
Launch = Callable[[str, str, Mapping[str, str], Given], FirstProcess]


class Spawned:
    """A child of this process: a new interpreter."""

    def __init__(self, module: str, marker: str, environment: Mapping[str, str], given: Given) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.run_step", "--module", module, "--pipe", str(given.told)],
            stdin=given.orders,
            stdout=given.printed,
            stderr=subprocess.STDOUT,
            pass_fds=(given.told,),
            start_new_session=True,
            env=step_environment(marker, environment),
        )
        self.pid = self._process.pid
        self.life = os.pidfd_open(self.pid)

    def ended(self) -> int | None:
        """Reap it, after what is left of its group is killed.

        Until it is reaped, nobody else can have been given the group's number.
        """
        if not select.select([self.life], [], [], 0)[0]:
            return None
        os.close(self.life)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        return self._process.wait()


class Forked:
    """A child of a fork server. It kills its group itself, itself included, after it has said how it ended.

    Args:
        said: the descriptor that tells how; it is closed here.
    """

    def __init__(self, pid: int, said: int) -> None:
        self.pid = pid
        self._said = said
        try:
            self.life = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, and been reaped: what is as readable as that
            self.life, other_end = os.pipe()
            os.close(other_end)

    def ended(self) -> int | None:
        if not select.select([self.life], [], [], 0)[0]:
            return None
        os.close(self.life)
        with os.fdopen(self._said, "rb") as said:
            # Without a word it goes only by the one signal that leaves no time for one.
            return int(said.read() or -signal.SIGKILL)


class ForkServer:
    """A process that holds imported modules, started when it is first wanted; it ends by itself when idle.

    Args:
        preload: the modules.
        threads: that its steps compute with.
        idle_seconds: how long it waits for the next request.
    """

    def __init__(self, preload: Sequence[str], *, threads: int, idle_seconds: float) -> None:
        arguments = ["--threads", str(threads), "--idle-seconds", str(idle_seconds)]
        for module in preload:
            arguments += ["--preload", module]
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False
        self.unusable = False  # it has found that it must not fork, or was closed
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether the next step will be forked. It is started if it does not run."""
        with self._lock:
            return self._is_ready()

    def fork(self, module: str, marker: str, environment: Mapping[str, str], given: Given) -> Forked | None:
        """Have a step's process forked; None: the server is not there yet, or no more, and will be."""
        request = {"module": module, "marker": marker, "environment": dict(environment)}
        with self._lock:
            if not self._is_ready():
                return None
            said, ended = os.pipe()
            try:
                answer = self._ask(request, [given.orders, given.printed, given.told, ended])
            finally:
                os.close(ended)
            if "pid" in answer:
                return Forked(answer["pid"], said)
            log.warning("step_not_forked", error=answer["error"])
            os.close(said)
            self._end()
            return None

    def _ask(self, request: Mapping[str, object], descriptors: list[int]) -> dict[str, Any]:
        assert self._socket is not None  # noqa: S101 - it is ready
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            answer = self._socket.recv(MESSAGE_BYTES)
        except OSError as error:
            return {"error": str(error)}
        return json.loads(answer) if answer else {"error": "it has ended"}

    def close(self) -> None:
        with self._lock:
            self._end()
            self.unusable = True

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            # It ended before it was ready by its own judgement, which will be the same.
            self.unusable = not self._ready and self._process.returncode > 0
            self._end()
        if self.unusable:
            return False
        if self._socket is None:
            # Without it steps start all the same, or say why they cannot.
            with contextlib.suppress(OSError):
                self._start()
        elif not self._ready and select.select([self._socket], [], [], 0)[0]:
            self._ready = bool(self._socket.recv(MESSAGE_BYTES))
        return self._ready

    def _start(self) -> None:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(FORK_SECONDS)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.fork_server", "--socket", str(its.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
                start_new_session=True,
                env=step_environment(UNMARKED, ENVIRONMENT),
            )
        self._socket = ours

    def _end(self) -> None:
        """Let go of it: without its socket it ends. Those that it has forked stay."""
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._socket, self._ready = None, None, False


class Launcher:
    """Forks steps' processes where a server is warm for their module, and else starts new interpreters.

    Args:
        servers: for each module, the server that holds what it needs.
    """

    def __init__(self, servers: Mapping[str, ForkServer]) -> None:
        self._servers = servers

    def __call__(
        self, module: str, marker: str, environment: Mapping[str, str], given: Given
    ) -> FirstProcess:
        server = self._servers.get(module)
        forked = server.fork(module, marker, environment, given) if server is not None else None
        return forked or Spawned(module, marker, environment, given)

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
