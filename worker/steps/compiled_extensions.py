"""What torch compiles on its first use, such as DeepSpeed's communication on a CPU, in a folder of Lathe's.

torch marks a build by a file, which a process that is killed leaves behind; all that come later would wait
for it without an end. Here whoever may build holds the folder by a lock that ends with its process, so that
the next one knows that nobody works on a build any more.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HELD = ".held"
BUILDING = "lock"  # as torch calls its mark, in the folder of each build


@contextmanager
def compiled_extensions(folder: Path) -> Iterator[dict[str, str]]:
    """Hold the folder, in which no mark is then left of a build that has ended.

    Returns:
        what tells a process of it, by its environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HELD).open("w") as held:
        with suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for mark in folder.glob(f"*/{BUILDING}"):
                mark.unlink()
        fcntl.flock(held, fcntl.LOCK_SH)
        yield {"TORCH_EXTENSIONS_DIR": str(folder)}


def has_compiled(folder: Path) -> bool:
    return any(folder.glob("*/*.so"))
