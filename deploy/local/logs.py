"""The parts' logs: <data_dir>/logs/<part>.log, rotated by size.

A part writes to its file itself, opened for appending. Rotation copies the file and truncates it, so
that no pipe has to be read, and a part's last words are kept even when the supervisor is killed.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

ROTATE_BYTES = 10 * 1024**2
KEPT = 3
FOLLOW_SECONDS = 0.25
BLOCK_BYTES = 64 * 1024


def folder(data_dir: Path) -> Path:
    return data_dir / "logs"


def rotate(path: Path, *, limit_bytes: int = ROTATE_BYTES) -> bool:
    """Move a log that has grown beyond the limit to `<name>.1`, and so on up to KEPT."""
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.rename(path.with_name(f"{path.name}.{number + 1}"))
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
    return True


def tail(path: Path, lines: int, *, start: int = 0) -> list[str]:
    """The last lines of a log, not looking before byte `start`."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            start = start if start <= position else 0  # rotated since
            block = b""
            while position > start and block.count(b"\n") <= lines:
                step = min(BLOCK_BYTES, position - start)
                position = file.seek(position - step)
                block = file.read(step) + block
    except FileNotFoundError:
        return []
    return block.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []


class Follower:
    """New whole lines of one log since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self._position = 0
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return []
        self._position += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


def follow(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """Yield (part, line) as the logs grow, without end."""
    followers = [Follower(path) for path in paths]
    while True:
        for follower in followers:
            for line in follower.lines():
                yield follower.path.stem, line
        time.sleep(FOLLOW_SECONDS)
