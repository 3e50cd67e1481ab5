"""Waiting for states, and not for time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    seconds: float = 30,
    every: float = 0.02,
    told: Callable[[], object] = lambda: "it did not come about",
) -> T:
    """Wait until `condition` gives something that is true, and give that; `told` says what was wrong."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, told()
        time.sleep(every)
    return found
