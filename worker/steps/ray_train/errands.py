"""Files between a worker's machine and the step: what it needs is brought, what rank 0 makes is handed in.

`ask` is how a worker asks the step: the name of what it wants, and its particulars.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worker.steps.ray_train.desk import PIECE_BYTES, files_under

Ask = Callable[..., Any]


def bring(ask: Ask, listed: Mapping[str, dict[str, Any]], folder: Path) -> int:
    """Have each listed file under `folder`: by a link where this machine sees the very file that the step
    sees, else by a copy, piece by piece.

    Returns:
        bytes that were copied.
    """
    copied = 0
    for name, file in listed.items():
        target = folder / name
        if target.exists() and target.stat().st_size == file["bytes"]:
            continue  # of another worker of this machine, or of an earlier group
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        if _is_seen(file):
            target.symlink_to(file["path"])
            continue
        copied += file["bytes"]
        beside = target.with_name(f"{target.name}.part-{os.uname().nodename}")
        with beside.open("wb") as out:
            while out.tell() < file["bytes"]:
                out.write(ask("piece", name=name, at=out.tell()))
        beside.rename(target)
    return copied


def hand_in(ask: Ask, folder: Path, name: str) -> None:
    """Send the folder `name` of `folder`, or the file, under that name."""
    there = folder / name
    files = files_under(folder, there.rglob("*") if there.is_dir() else [there])
    for path_name, path in files.items():
        left, at = path.stat().st_size, 0
        with path.open("rb") as file:
            while left or at == 0:
                data = file.read(PIECE_BYTES)
                left -= len(data)
                ask("put", name=path_name, at=at, data=data, last=left == 0)
                at += max(1, len(data))


def _is_seen(file: Mapping[str, Any]) -> bool:
    path = Path(file["path"])
    try:
        about = path.stat()
    except OSError:
        return False
    same = (about.st_size, about.st_mtime_ns) == (file["bytes"], file["modified_ns"])
    return same and os.access(path, os.R_OK)
