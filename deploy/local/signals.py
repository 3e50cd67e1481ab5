"""Signals as something to wait for: the kernel's interruptions arrive where it is safe to act on them."""

import os
import select
import signal
from types import FrameType


class StopRequested(Exception):
    """Somebody asked the stack to stop: Ctrl-C, `lathe down`, the system's shutdown."""


class Signals:
    """Count requests to stop, and wake a waiting loop when one comes or when a child dies."""

    def __init__(self) -> None:
        self.stops = 0
        self._wakeup, write_end = os.pipe()
        for descriptor in (self._wakeup, write_end):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it stays ignored
            signal.signal(signal.SIGHUP, self._stop)

    def wait(self, seconds: float) -> None:
        """Wait at most so long for any signal."""
        ready, _, _ = select.select([self._wakeup], [], [], seconds)
        if ready:
            os.read(self._wakeup, 4096)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stops += 1
