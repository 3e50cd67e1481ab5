"""The process of a reader: a new interpreter, or a copy of this process, which is there in a moment."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol


class _Process(Protocol):
    """What `Popen` and a copy have in common."""

    def kill(self) -> None: ...

    def wait(self) -> int:
        """Wait until it has ended, and give its exit code, or the signal as a negative number."""
        ...


class ReaderProcess:
    """A running reader. `tasks` takes a line for each, and the descriptor `answers` gives one back.

    Args:
        copied: it is a copy of this process, which has one thread: locks that others hold would stay so.
    """

    def __init__(self, *, copied: bool) -> None:
        given_tasks, tasks = os.pipe()
        answers, given_answers = os.pipe()
        try:
            self._process: _Process = (_copy if copied else _new)(given_tasks, given_answers)
        except OSError:
            os.close(tasks)
            os.close(answers)
            raise
        finally:
            os.close(given_tasks)
            os.close(given_answers)
        self.tasks = os.fdopen(tasks, "wb")
        self.answers = answers

    def wait(self) -> int:
        """Wait until it has ended, and give its exit code, or the signal as a negative number."""
        return self._process.wait()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self.answers)
        with contextlib.suppress(BrokenPipeError):
            self.tasks.close()


def _new(tasks: int, answers: int) -> _Process:
    # In the group of whoever starts it, and so ended with it.
    return subprocess.Popen(
        [sys.executable, "-m", "retrieval.reader", str(answers)],
        stdin=tasks,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(answers,),
    )


def _copy(tasks: int, answers: int) -> _Process:
    from retrieval.reader import read_in_copy  # which imports who starts readers

    pid = os.fork()
    if pid == 0:
        read_in_copy(tasks, answers)
    return _Copy(pid)


class _Copy:
    """A child that was forked, to be waited for here alone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._code: int | None = None

    def kill(self) -> None:
        if self._code is None:  # else its number may be another's by now
            os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code


def has_one_thread() -> bool:
    return len(list(Path("/proc/self/task").iterdir())) == 1
