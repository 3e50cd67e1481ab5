"""Ending processes that a step left behind, found by the attempt that their environment names."""

import contextlib
import os
import signal
import time
from collections.abc import Collection

import psutil

from db.settings import STEP_MARKER

GONE_WITHIN_SECONDS = 2


def kill_marked(markers: Collection[str]) -> int:
    """Kill every process on this machine that belongs to one of the attempts `markers`.

    A process group's number may have been given to somebody else by now; the marker cannot. It also
    finds what a step started in a session of its own.

    Returns:
        how many were killed.
    """
    killed: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(STEP_MARKER) in markers:
                process.kill()
                killed.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    deadline = time.monotonic() + GONE_WITHIN_SECONDS
    while any(map(_lives, killed)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(killed)


def _lives(process: psutil.Process) -> bool:
    """Whether it still runs; a zombie only waits for its parent to look."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def signal_group(process_group: int, number: signal.Signals) -> None:
    # It may be gone, or have become another user's.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process_group, number)
