"""A program on a terminal of its own."""

import os
import pty
import select
import signal
import time


class Terminal:
    """What it shows, and who types there."""

    def __init__(self, *argv: str) -> None:
        self.screen = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="80", NO_COLOR="1")
            os.execv(argv[0], argv)  # noqa: S606 - no shell is what we want

    def expect(self, text: str, seconds: float = 15) -> None:
        """Wait until `text` has been shown since the last time."""
        deadline = time.monotonic() + seconds
        while text not in self.screen:
            left = max(0, deadline - time.monotonic())
            assert select.select([self.fd], [], [], left)[0], f"no {text!r} in {self.screen!r}"
            try:
                self.screen += os.read(self.fd, 65536).decode()
            except OSError:
                raise AssertionError(f"ended before {text!r}: {self.screen!r}") from None
        self.screen = self.screen.partition(text)[2]

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait(self, seconds: float = 15) -> int:
        """The exit status, once it has ended."""
        deadline = time.monotonic() + seconds
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        while not ended:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"it did not end: {self.screen!r}")
            time.sleep(0.02)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)
