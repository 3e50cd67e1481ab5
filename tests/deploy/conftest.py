"""Real stacks: each in a data folder of its own, on ports of its own, found again by a mark."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

PORT_SETTINGS = (
    "LATHE_API_PORT",
    "LATHE_FLOWER_PORT",
    "LATHE_POSTGRES_PORT",
    "LATHE_VALKEY_PORT",
    "LATHE_CHAT_PORT",
    "LATHE_EMBEDDING_PORT",
)
PATIENCE_SECONDS = 30


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Installation:
    """A data folder, and the `lathe` command on it."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.mark = secrets.token_hex(8)
        self.ports = dict(zip(PORT_SETTINGS, free_ports(len(PORT_SETTINGS)), strict=True))
        self.environment = {
            **os.environ,
            **{name: str(port) for name, port in self.ports.items()},
            "LATHE_DATA_DIR": str(data_dir),
            "LATHE_TEST_MARK": self.mark,
        }

    def lathe(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from cli.app import main; main()", *arguments]
        return subprocess.run(
            argv,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    def up(self) -> subprocess.Popen[str]:
        """`lathe up` in the foreground, as a terminal would start it."""
        argv = [sys.executable, "-c", "from cli.app import main; main()", "up"]
        return subprocess.Popen(
            argv,
            env=self.environment | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.lathe("status", "--json").stdout)
        return answer

    def part(self, name: str) -> dict[str, Any]:
        return next(part for part in self.status()["parts"] if part["name"] == name)

    def processes(self) -> list[psutil.Process]:
        """Every process that was started here."""
        return [process for process in psutil.process_iter() if self._started(process)]

    def _started(self, process: psutil.Process) -> bool:
        try:
            if process.environ().get("LATHE_TEST_MARK") == self.mark:
                return True
            # Postgres and Valkey write their titles over the environment, but work in their folders.
            return Path(process.cwd()).is_relative_to(self.data_dir)
        except (psutil.Error, OSError):
            return False

    def wait_until_empty(self, seconds: float = PATIENCE_SECONDS) -> list[str]:
        """Wait until no process is left; returns the command lines of those that stay."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [str(process) for process in left]

    def clean_up(self) -> None:
        for process in self.processes():
            if process.is_running():
                process.send_signal(signal.SIGKILL)


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(tmp_path / "data")
    yield made
    made.clean_up()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A stack that several tests look at, started once by `lathe up --detach`."""
    made = Installation(tmp_path_factory.mktemp("running") / "data")
    started = made.lathe("up", "--detach")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        stopped = made.lathe("down")
        left = made.wait_until_empty(10)
        made.clean_up()
        assert stopped.returncode == 0, stopped.stderr
        assert left == []
