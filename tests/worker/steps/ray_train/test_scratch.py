"""The folders of trainings on a machine: held while they are used, and removed after that."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from db.errors import InvalidInput
from tests.conftest import REPOSITORY
from worker.steps.ray_train.scratch import one_at_a_time, scratch

HOLD = """
import sys, pathlib
from worker.steps.ray_train.scratch import scratch
with scratch(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(folder: Path) -> "subprocess.Popen[str]":
    """Another worker, which holds the folder."""
    argv = [sys.executable, "-c", HOLD, str(folder)]
    other = subprocess.Popen(
        argv, stdin=-1, stdout=-1, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    return other


def test_the_last_worker_that_leaves_removes_it(tmp_path: Path) -> None:
    folder = tmp_path / "job-1-1"
    other = holding(folder)
    with scratch(folder), one_at_a_time(folder):
        (folder / "weights").write_bytes(b"x")
    assert (folder / "weights").exists()
    other.communicate("")
    assert not folder.exists()


def test_what_a_killed_worker_left_goes_with_the_next_training(tmp_path: Path) -> None:
    killed, living = holding(tmp_path / "job-1-1"), holding(tmp_path / "job-2-1")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with scratch(tmp_path / "job-3-1"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["job-2-1", "job-3-1"]
    living.communicate("")
    assert list(tmp_path.iterdir()) == []


def test_a_machine_that_others_share_the_folder_with_leaves_it_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "job-1-1"
    with scratch(folder):
        (folder / ".held-other").touch()
        (folder / "weights").write_bytes(b"x")
    assert sorted(path.name for path in folder.iterdir()) == [".held-other", "weights"]


def test_a_place_that_cannot_be_written_names_the_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InvalidInput, match=r"LATHE_RAY_CLUSTERS: .*file cannot be written on"),
        scratch(tmp_path / "file" / "job-1-1"),
    ):
        pass
