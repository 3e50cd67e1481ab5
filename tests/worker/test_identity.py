"""Who is provably dead, and who is not."""

import os
import subprocess
import sys

import pytest

from tests.waiting import wait_until
from worker.identity import identify, is_dead

WAITS = [sys.executable, "-c", "import time; time.sleep(60)"]


def told(pid: int) -> str:
    process = identify(pid)
    assert process is not None
    return process


def test_who_lives_is_not_dead() -> None:
    assert not is_dead(told(os.getpid()))


def test_who_was_killed_is_dead_also_before_its_parent_looks() -> None:
    with subprocess.Popen(WAITS) as process:
        first = told(process.pid)
        assert not is_dead(first)
        process.kill()
        wait_until(lambda: is_dead(first))
        assert process.returncode is None
    assert is_dead(first)


def test_a_process_that_is_no_more_cannot_be_told() -> None:
    with subprocess.Popen(WAITS) as process:
        process.kill()
    assert identify(process.pid) is None


@pytest.mark.parametrize("part", range(3))
def test_of_another_boot_or_namespace_nothing_is_proven(part: int) -> None:
    with subprocess.Popen(WAITS) as process:
        machine, number, started = told(process.pid).rsplit(" ", 2)
        process.kill()
    parts = machine.split("/")
    parts[part] += "0"
    assert not is_dead(f"{'/'.join(parts)} {number} {started}")
    assert is_dead(f"{machine} {number} {started}")
