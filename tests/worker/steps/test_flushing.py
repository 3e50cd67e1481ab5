import errno
import os
import threading
from pathlib import Path

import pytest

from worker.steps.one_pass import flushing
from worker.steps.one_pass.flushing import flushed_meanwhile


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once a file was flushed, which is without a pause here."""
    monkeypatch.setattr(flushing, "SECONDS_BETWEEN", 0)
    return threading.Event()


class TestFlushedMeanwhile:
    def test_flushes_each_file_while_the_block_lasts(
        self, tmp_path: Path, flushed: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: set[int] = set()
        flush = os.fdatasync

        def noted(descriptor: int) -> None:
            flush(descriptor)
            seen.add(descriptor)
            if len(seen) == 2:
                flushed.set()

        monkeypatch.setattr(os, "fdatasync", noted)
        with (tmp_path / "a").open("wb") as one, (tmp_path / "b").open("wb") as other:
            descriptors = [one.fileno(), other.fileno()]
            with flushed_meanwhile(descriptors):
                assert flushed.wait(30)
        assert seen == set(descriptors)

    def test_a_full_disk_that_is_told_to_the_flusher_is_raised(
        self, flushed: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            flushed.set()
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fdatasync", full)
        with pytest.raises(OSError, match="No space left"), flushed_meanwhile([0]):
            assert flushed.wait(30)
