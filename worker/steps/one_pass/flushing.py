"""Have what is written go to the disk while more is made, so that nobody waits for all of it at the end."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SECONDS_BETWEEN = 0.1  # a small model is encoded in half a second


@contextmanager
def flushed_meanwhile(descriptors: Sequence[int]) -> Iterator[None]:
    """Flush these files again and again for as long as the block lasts.

    Raises:
        OSError: the disk is full, or failed; the system says so once, to whoever flushes.
    """
    ended = threading.Event()
    failed: list[OSError] = []

    def flush() -> None:
        try:
            while not ended.wait(SECONDS_BETWEEN):
                for descriptor in descriptors:
                    os.fdatasync(descriptor)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]
