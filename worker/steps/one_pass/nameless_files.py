"""Files that have no name until they are whole, so that whatever ends their process leaves none behind."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def nameless_file(target: Path) -> Iterator[int]:
    """Give a descriptor to write to; what was written is `target` once the block has ended well.

    Where the file system knows no files without a name, it has a hidden one, which is removed unless the
    process is killed.
    """
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        descriptor = os.open(target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        named = False
    except (AttributeError, OSError):  # no Linux, or a file system without it
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        named = True
    try:
        yield descriptor
        os.fsync(descriptor)
        if not named:
            _name(descriptor, beside)
        beside.replace(target)  # a link, unlike this, wants a name that is new
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def _name(descriptor: int, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Only with a folder's descriptor does Python make the call that follows /proc's link to the file.
        os.link(f"/proc/self/fd/{descriptor}", path.name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)
