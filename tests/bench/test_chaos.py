"""The short form of `bench/chaos.py`, run as a person runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.ledger import LEDGER
from tests.worker.conftest import REPOSITORY


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    """Begin a run that keeps all it makes under `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench.chaos", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"TMPDIR": str(folder)},
    )


def left(folder: Path) -> list[psutil.Process]:
    """The processes of runs under `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(LEDGER, "").startswith(f"{folder}/"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_short_form_finds_nothing_amiss(tmp_path: Path) -> None:
    run = start(tmp_path, "--jobs", "8", "--kills", "10", "--lease", "4", "--seed", "3")
    out, error = run.communicate(timeout=200)
    assert out, error
    result = json.loads(out)
    assert result["violations"] == {
        "lost": [], "run twice": [], "published twice": [], "stale writes accepted": [], "stuck": [],
        "processes left": [],
    }, result  # fmt: skip
    assert result["kills"] == 10
    assert result["attempts"]["done"] == 8 * 4
    assert set(result["harms"]) >= {
        "child",
        "worker",
        "api",
        "valkey",
        "backend",
        "postgres",
        "worker frozen",
    }
    assert left(tmp_path) == []


@pytest.mark.slow
def test_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    run = start(tmp_path, "--quick")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/ledger")):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < deadline, "no step began"
        time.sleep(0.05)
    assert len(left(tmp_path)) > 5
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode != 0
    assert left(tmp_path) == []
