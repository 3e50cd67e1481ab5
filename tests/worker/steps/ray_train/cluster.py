"""A Ray cluster of the test's own on this machine: two CPUs, a small object store, ended as one group."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from serving.local_port import free_port
from tests.conftest import REPOSITORY

OBJECT_STORE_BYTES = 80 * 1024**2  # the least that Ray takes
START_SECONDS = 120
# Of each machine, and the one of a cluster that has machines added to it where that can be done.
RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinator")


class LocalCluster:
    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        # Ray's sockets lie below, and the path of a socket has to be short.
        self._temp = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        argv = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={self.port}",
            "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self._temp}",
        ]  # fmt: skip
        self._log = (folder / "ray.log").open("wb")
        self._head = subprocess.Popen(
            argv,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self._wait()

    def _wait(self) -> None:
        import ray

        deadline = time.monotonic() + START_SECONDS
        while b"Ray runtime started" not in Path(self._log.name).read_bytes():
            assert self._head.poll() is None, Path(self._log.name).read_text()
            assert time.monotonic() < deadline, Path(self._log.name).read_text()
            time.sleep(0.1)
        assert ray.__version__

    def workers(self) -> list[psutil.Process]:
        """The processes that train, by rank or not; none while no training runs."""
        return [
            process for process in self._processes() if _command(process).startswith("ray::RayTrainWorker")
        ]

    def actors(self) -> list[str]:
        """All that drivers had started here and that lives."""
        names = map(_command, self._processes())
        return [name for name in names if name.startswith("ray::") and not name.startswith(RAYS_OWN)]

    def _processes(self) -> list[psutil.Process]:
        return psutil.Process(self._head.pid).children(recursive=True)

    def stop(self) -> None:
        """End every process of it."""
        processes = self._processes()
        self._head.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([*processes, psutil.Process(self._head.pid)], timeout=15)
        for process in alive:
            process.kill()
        self._head.wait()
        self._log.close()
        shutil.rmtree(self._temp, ignore_errors=True)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
