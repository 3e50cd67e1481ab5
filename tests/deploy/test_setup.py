"""`make setup`, as far as it can be tried without installing everything again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy import setup

ROOT = Path(__file__).resolve().parent.parent.parent


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class TestRun:
    def test_says_which_command_failed(self) -> None:
        with pytest.raises(setup.SetupFailed, match="exit code 3 from: sh -c"):
            setup.run("sh", "-c", "exit 3")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupt_ends_what_the_command_started(self, number: signal.Signals) -> None:
        program = (
            "import signal; from deploy import setup; signal.signal(signal.SIGTERM, setup.interrupt); "
            "setup.run('sh', '-c', 'sleep 61 & sleep 62')"
        )
        parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        started: list[psutil.Process] = []
        while len(started) < 3 and time.monotonic() < deadline:
            started = psutil.Process(parent.pid).children(recursive=True)
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(timeout=30)
        assert len(started) == 3
        assert all(gone(process) for process in started)


class TestTorchPin:
    def test_is_exact(self) -> None:
        assert setup.torch_pin().startswith("torch==")


class TestFingerprint:
    def test_changes_with_what_decides_the_packages(self) -> None:
        variants = {setup.fingerprint(url, gpu) for url in ("", "https://x.example") for gpu in (True, False)}
        assert len(variants) == 4

    def test_stays_otherwise(self) -> None:
        assert setup.fingerprint("", False) == setup.fingerprint("", False)
