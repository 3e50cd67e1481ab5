"""A process that has imported what steps need, and forks a step's process from itself for each request.

`python -m worker.fork_server --socket FD --idle-seconds N --threads N --preload MODULE …`, started by a
worker. To import torch and what stands on it takes seconds, to fork a process that holds it milliseconds.

The socket brings JSON, one message a request: {"module", "marker", "environment"}, and with it the step's
pipes: orders, printed, told, ended. It takes one message for each: {"pid"}, or {"error"}. The first that
it takes is {"ready"}.
"""

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from db.settings import STEP_MARKER
from worker.run_step import serve_step
from worker.steps.runtime import prepare_runtime

MESSAGE_BYTES = 1 << 16
# What this process is started with in place of an attempt; the attempt's name is written over it.
UNMARKED = "-" * 200


def main() -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--idle-seconds", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--preload", action="append", default=[])
    options = parser.parse_args()
    # The worker watches those that are forked. They are reaped here, so that their time counts as children's.
    signal.signal(signal.SIGCHLD, lambda number, frame: _reap())
    prepare_runtime(options.threads)
    _preload(options.preload)
    with socket.socket(fileno=options.socket) as worker, contextlib.suppress(ConnectionError):
        worker.send(json.dumps({"ready": os.getpid()}).encode())
        while select.select([worker], [], [], options.idle_seconds)[0]:
            data, descriptors, _, _ = socket.recv_fds(worker, MESSAGE_BYTES, 4)
            if not data:
                break  # the worker has ended
            _fork(worker, json.loads(data), descriptors)
    os._exit(0)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):  # there is none left
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _preload(modules: Sequence[str]) -> None:
    """Import what there is of the modules, since extras may not be installed, and let them warm up.

    A thread would not be there in a process that is forked, but what it has locked would stay so.
    """
    for module in modules:
        with contextlib.suppress(ImportError):
            imported = importlib.import_module(module)
            getattr(imported, "warm_up", lambda: None)()
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads > 1:
        sys.exit(f"worker.fork_server: cannot fork steps, for an import has started {threads - 1} threads")
    # A collection would touch, and so copy, all that the processes share.
    gc.collect()
    gc.freeze()


def _fork(worker: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
    """Fork the step's process, which answers for itself: what it says it is, it is by then."""
    try:
        if os.fork() == 0:
            _be_step(worker, request, descriptors)
    except OSError as error:
        worker.send(json.dumps({"error": str(error)}).encode())
    for descriptor in descriptors:
        os.close(descriptor)


def _be_step(worker: socket.socket, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Become what a new interpreter would be: a session, an environment, pipes and chance of its own."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _mark(request["marker"])
        os.environ.update(request["environment"])
        orders, printed, told, ended = descriptors
        for descriptor, standard in ((orders, 0), (printed, 1), (printed, 2)):
            os.dup2(descriptor, standard)
        for descriptor in (orders, printed):
            os.close(descriptor)
        for descriptor in (told, ended):
            os.set_inheritable(descriptor, False)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()
        worker.send(json.dumps({"pid": os.getpid()}).encode())
        worker.close()
    except BaseException:  # noqa: BLE001 - the edge of the process, which must not go on as another server
        traceback.print_exc()
        os._exit(1)
    serve_step(request["module"], told, ended)


def _mark(marker: str) -> None:
    """Name the attempt in the environment, and also where others read it: in the memory that exec has filled.

    Raises:
        ValueError: the name is longer than its place.
    """
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_void_p
    place, name = getenv(STEP_MARKER.encode()), marker.encode()
    if len(name) > len(UNMARKED):
        raise ValueError(f"{STEP_MARKER} is longer than {len(UNMARKED)} bytes")
    ctypes.memmove(place, name.ljust(len(UNMARKED), b"\0"), len(UNMARKED))
    os.environ[STEP_MARKER] = marker


if __name__ == "__main__":
    main()
