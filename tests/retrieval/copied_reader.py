"""Run by a test, in a process of one thread: `python -m tests.retrieval.copied_reader FOLDER`.

Prints, as JSON, what readers did that are copies of this process; then it is gone without having ended one.
"""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import psutil

from retrieval import reader
from retrieval.readers import Clock, Readers, Unreadable


def main(folder: Path) -> None:
    reader.preload()
    open_here = os.memfd_create("held")  # what a copy has no use for
    with Readers(1, copies=1) as readers:
        found = {
            "is_copy": is_copy(),
            "text": text_of(readers, folder / "good.pdf"),
            "open_files": sorted(set(open_files()) - {0, 1, 2}),
            "held": open_here,
            "address_space_more": address_space_more(),
            "of_bomb": text_of(readers, folder / "bomb.pdf"),
        }
        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        found["after_it"] = text_of(readers, folder / "good.pdf")
        found["is_copy_after_it"] = is_copy()
    with Readers(1, copies=1) as readers:
        found["too_slow"] = text_of(readers, folder / "bomb.pdf", seconds=0.01)
        found["left"] = len(psutil.Process().children())
    Readers(1, copies=1)
    found["outliving"] = only_child().pid
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def text_of(readers: Readers, path: Path, *, seconds: float = 60) -> Any:
    """The text of its first page, or the code with which it is refused."""
    task = {"task": "pages", "path": str(path), "password": None, "first": 0, "last": 1}
    try:
        return readers.do(task, clock=Clock(seconds))["pages"][0]["text"]
    except Unreadable as error:
        return error.code


def only_child() -> psutil.Process:
    [child] = psutil.Process().children()
    return child


def is_copy() -> bool:
    return only_child().cmdline() == psutil.Process().cmdline()


def open_files() -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{only_child().pid}/fd").iterdir()]


def address_space_more() -> int:
    """By how many bytes the child's may grow."""
    child = only_child()
    most, _ = resource.prlimit(child.pid, resource.RLIMIT_AS)
    return most - child.memory_info().vms


if __name__ == "__main__":
    main(Path(sys.argv[1]))
