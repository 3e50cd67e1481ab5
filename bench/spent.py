"""What work costs: seconds, CPU-seconds of whole process trees, and the memory they hold at their peak."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

import psutil

CPU_CLOCK_OF_A_PROCESS = 2  # CPUCLOCK_SCHED; Source: the kernel's include/linux/posix-timers.h
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Spent:
    wall: float
    cpu: float


def tree(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for root in roots:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [root, *root.children(recursive=True)]
    return found


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Of the processes, and of their children that have ended.

    By each process's own clock, in nanoseconds: /proc counts in hundredths, and a small PDF takes one.
    """
    total = 0.0
    for process in processes:
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.children_user + times.children_system
            total += time.clock_gettime((~process.pid << 3) | CPU_CLOCK_OF_A_PROCESS)
    return total


class Stopwatch:
    """Seconds and CPU-seconds of a block, in this process and in those that `workers` tells.

    This process's clock is read last at the beginning and first at the end: looking for the others takes
    it as long as a small PDF.
    """

    def __init__(self, workers: Callable[[], Iterable[psutil.Process]]) -> None:
        self._workers = workers
        self.spent = Spent(0.0, 0.0)

    def __enter__(self) -> Self:
        self._cpu = cpu_seconds(self._workers())
        self._own, self._wall = cpu_seconds([psutil.Process()]), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        wall = time.perf_counter() - self._wall
        own = cpu_seconds([psutil.Process()]) - self._own
        self.spent = Spent(wall, own + cpu_seconds(self._workers()) - self._cpu)


class MemoryWatch:
    """The most memory that trees hold during a block; what their processes share counts once.

    Args:
        without: a process in one of the trees, which is not counted.
    """

    def __init__(self, *roots: psutil.Process, without: psutil.Process | None = None) -> None:
        self._roots, self._without = roots, without
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_bytes = 0

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            held = 0
            for process in tree(self._roots):
                if process == self._without:
                    continue
                with contextlib.suppress(psutil.Error):
                    held += process.memory_full_info().pss
            self.peak_bytes = max(self.peak_bytes, held)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
