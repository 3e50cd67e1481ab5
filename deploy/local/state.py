"""What is known of a running stack: <data_dir>/run/stack.json, under a lock that its supervisor holds.

The lock says whether one runs; the file says what it consists of. The kernel drops the lock with the
process, so a killed supervisor leaves nothing that would have to be cleaned up.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import psutil

from db.errors import Conflict

LOCK_PATIENCE_SECONDS = 0.5


@dataclass
class PartState:
    """One part, as its supervisor sees it.

    Args:
        state: starting, ready, unhealthy, restarting, stopped, or external for a server of the user's own.
        created_at: when the kernel made the process (psutil's create_time), which tells a pid's reuse.
        note: what went wrong last.
    """

    name: str
    title: str
    state: str
    address: str = ""
    port: int | None = None
    pid: int | None = None
    created_at: float | None = None
    restarts: int = 0
    note: str | None = None


@dataclass
class StackState:
    pid: int
    created_at: float
    data_dir: str
    api_url: str
    flower_url: str
    flower_user: str
    ready: bool = False
    parts: list[PartState] = field(default_factory=list)


def run_folder(data_dir: Path) -> Path:
    return data_dir / "run"


def _state_file(data_dir: Path) -> Path:
    return run_folder(data_dir) / "stack.json"


def write(state: StackState) -> None:
    path = _state_file(Path(state.data_dir))
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(asdict(state), indent=1))
    beside.rename(path)


def read(data_dir: Path) -> StackState | None:
    """The last state that was written, by a supervisor that runs or by one that is gone."""
    try:
        data = json.loads(_state_file(data_dir).read_text())
        parts = [PartState(**part) for part in data.pop("parts")]
        return StackState(**data, parts=parts)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def remove(data_dir: Path) -> None:
    _state_file(data_dir).unlink(missing_ok=True)


@contextlib.contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for one stack.

    Raises:
        Conflict: another one holds it; says which.
    """
    run_folder(data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    with (run_folder(data_dir) / "lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_PATIENCE_SECONDS  # `lathe status` holds it for an instant
        while not _lock(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise Conflict(_who_runs(data_dir), code="already_running")
            time.sleep(0.05)
        yield


def is_held(data_dir: Path) -> bool:
    """Whether a stack holds the data folder."""
    try:
        with (run_folder(data_dir) / "lock").open("r") as lock:
            return not _lock(lock, fcntl.LOCK_SH)
    except (FileNotFoundError, NotADirectoryError):
        return False


def running(data_dir: Path) -> StackState | None:
    """The stack that runs on the data folder, or None."""
    return read(data_dir) if is_held(data_dir) else None


def process_of(pid: int | None, created_at: float | None) -> psutil.Process | None:
    """The process that was meant, unless it is gone and its pid another's."""
    if pid is None or created_at is None:
        return None
    try:
        process = psutil.Process(pid)
        return process if abs(process.create_time() - created_at) < 1 else None
    except psutil.Error:
        return None


def own_create_time() -> float:
    return psutil.Process(os.getpid()).create_time()


def _who_runs(data_dir: Path) -> str:
    state = read(data_dir)
    who = f"pid {state.pid}, {state.api_url}" if state else "it has only just begun"
    return f"Lathe already runs on {data_dir} ({who}). `lathe status` shows it, `lathe down` stops it."


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
