"""A training's folder on the machines that train it: what workers have fetched, and what rank 0 writes.

It bears the same path everywhere, and may be one folder on a disk that machines share. Each machine holds it
by a lock that ends with its workers, whatever ends them; so the next training can tell which folders nobody
uses any more, and removes them.
"""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from db.errors import InvalidInput
from training_data.ray_clusters import SETTING

HELD = ".held-"  # and the machine's name
FETCHING = ".fetching-"


@contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Hold a training's folder. The last worker of the last machine that leaves removes it.

    Raises:
        InvalidInput: it cannot be made here.
    """
    descriptor = _hold(folder)
    try:
        for other in folder.parent.iterdir():
            if other != folder:
                _remove_unheld(other)
        yield
    finally:
        os.close(descriptor)
        _remove_unheld(folder)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Of the workers of this machine, one fetches; the others find what it fetched."""
    with (folder / f"{FETCHING}{socket.gethostname()}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _hold(folder: Path) -> int:
    held = folder / f"{HELD}{socket.gethostname()}"
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(held, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # removed, by the last that left
        except OSError as error:
            raise InvalidInput(
                f"{SETTING}: {folder.parent} cannot be written on {socket.gethostname()}: {error.strerror}. "
                "storage_path names a folder that each machine of the cluster can write to.",
                param=SETTING,
            ) from error
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            # Whoever removed the folder meanwhile, removed the file that we hold.
            if os.fstat(descriptor).st_ino == held.stat().st_ino:
                return descriptor
        os.close(descriptor)


def _remove_unheld(folder: Path) -> None:
    """Remove a folder that no worker of this machine uses, and no other machine ever did or still does."""
    with suppress(OSError):
        locks = list(folder.glob(f"{HELD}*"))
        own = folder / f"{HELD}{socket.gethostname()}"
        if own not in locks:
            return
        with own.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if len(locks) > 1:
                own.unlink()  # the others', who see it too, remove the rest
            else:
                shutil.rmtree(folder, ignore_errors=True)
