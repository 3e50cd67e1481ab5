"""Readers that are copies of the process that needs them: as well fenced in as those that are started."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from retrieval.reader import MEMORY_BYTES
from tests.documents import RawPdf
from tests.retrieval.test_bad_input import SPACES, nested

REPOSITORY = Path(__file__).parents[2]
TEXT = "Hello lathe"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("copied")
    (folder / "good.pdf").write_bytes(RawPdf().to_bytes())
    (folder / "bomb.pdf").write_bytes(RawPdf({4: nested(5, SPACES)}).to_bytes())
    argv = [sys.executable, "-m", "tests.retrieval.copied_reader", str(folder)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_reads_as_any_other(found: dict[str, Any]) -> None:
    assert (found["is_copy"], found["text"]) == (True, TEXT)


def test_keeps_nothing_open_of_the_other_process(found: dict[str, Any]) -> None:
    assert len(found["open_files"]) == 2
    assert found["held"] not in found["open_files"]


def test_has_no_more_memory_than_a_new_one(found: dict[str, Any]) -> None:
    assert 0 < found["address_space_more"] < MEMORY_BYTES
    assert found["of_bomb"] == "reader_died"
    assert found["peak_bytes"] < MEMORY_BYTES


def test_the_next_one_is_new(found: dict[str, Any]) -> None:
    assert (found["after_it"], found["is_copy_after_it"]) == (TEXT, False)


def test_is_ended_when_time_is_up(found: dict[str, Any]) -> None:
    assert (found["too_slow"], found["left"]) == ("too_slow", 0)


def test_ends_with_the_process_that_it_is_a_copy_of(found: dict[str, Any]) -> None:
    deadline = time.monotonic() + 30
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(found["outliving"]).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)
