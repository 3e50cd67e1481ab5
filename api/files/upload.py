"""An upload, from the socket to the storage root: written once, beside its place, then renamed."""

import errno
import hashlib
import os
import re
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from starlette.concurrency import run_in_threadpool

from api.errors import TooLarge
from api.files.multipart import Bytes, FilePart, FormReader
from db.disk import flush
from db.errors import Exhausted, InvalidInput
from db.ids import new_id
from db.storage import file_path

# Bytes handed to a thread at once: the loop is free while they are hashed and written.
WRITE_BYTES = 1024 * 1024
# An upload leaves at least this much of the disk to everybody else.
SPARED_BYTES = 64 * 1024 * 1024
MAX_NAME_BYTES = 200
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Uploaded:
    """A file that lies at its place. `path` is relative to the storage root."""

    id: str
    filename: str
    path: str
    bytes: int
    sha256: str
    fields: dict[str, str]


class Target:
    """Where an upload is written. Unless it is kept, nothing is left of it.

    Args:
        folder: in which it lies under its id; None: where files do.
        too_large: what is said of more than `max_bytes`, of the field `param`.
    """

    def __init__(
        self,
        root: Path,
        file_id: str,
        max_bytes: int,
        *,
        folder: Path | None = None,
        too_large: str = "",
        param: str = "file",
    ) -> None:
        self._folder = folder or root / "files"
        self._part = self._folder / f".{file_id}.part"
        self._place = self._folder / file_id
        self._max_bytes = max_bytes
        self._param = param
        self._too_large = too_large or (
            f"A file may have at most {max_bytes} bytes here (LATHE_MAX_FILE_BYTES)."
        )
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._part.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def open(self, expected_bytes: int) -> None:
        """Make the file.

        Raises:
            Exhausted: the disk cannot hold as much as the request announces.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < expected_bytes + SPARED_BYTES:
            raise _disk_full()
        self._file = self._part.open("xb")

    def write(self, data: bytes) -> None:
        """Append to the file.

        Raises:
            TooLarge: it grows beyond the limit.
            Exhausted: the disk is full.
        """
        self.bytes += len(data)
        if self.bytes > self._max_bytes:
            raise TooLarge(self._too_large, param=self._param)
        self._hash.update(data)
        try:
            self._open_file.write(data)
        except OSError as error:
            raise _disk_full() if error.errno in NO_ROOM else error from None

    def keep(self) -> None:
        """Bring the bytes to the disk itself, then the file to its place."""
        try:
            self._open_file.flush()
            os.fsync(self._open_file.fileno())
        except OSError as error:
            raise _disk_full() if error.errno in NO_ROOM else error from None
        self._part.rename(self._place)
        flush(self._folder)

    def take_back(self) -> None:
        """Remove a file that was kept, when no row came to name it."""
        self._place.unlink(missing_ok=True)

    @property
    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError("the upload's file is not open")
        return self._file


async def receive_upload(
    stream: AsyncIterator[bytes],
    content_type: str,
    target: Target,
    file_id: str,
    *,
    expected_bytes: int,
    part: str = "file",
) -> Uploaded:
    """Read a form from `stream` and write its file, the part of that name, into `target`.

    Raises:
        InvalidInput: the form is broken, or its file empty.
        TooLarge, Exhausted: see `Target`.
    """
    form = FormReader(content_type, part)
    filename = ""
    waiting = bytearray()
    async for data in stream:
        for found in form.feed(data):
            if isinstance(found, FilePart):
                filename = clean_filename(found.filename)
                await run_in_threadpool(target.open, expected_bytes)
            elif isinstance(found, Bytes):
                waiting += found.data
        if len(waiting) >= WRITE_BYTES:
            await run_in_threadpool(target.write, bytes(waiting))
            waiting.clear()
    form.finish()
    await run_in_threadpool(target.write, bytes(waiting))
    if target.bytes == 0:
        raise InvalidInput("The file is empty.", param=part, code="empty_file")
    return Uploaded(file_id, filename, file_path(file_id), target.bytes, target.sha256, form.fields)


def new_target(root: Path, max_bytes: int) -> tuple[str, Target]:
    file_id = new_id("file")
    return file_id, Target(root, file_id, max_bytes)


def clean_filename(name: str) -> str:
    """The last part of a name, in characters that can be shown. It never becomes a path of ours."""
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    name = "".join(char for char in name if char.isprintable()).strip(" .")
    while len(name.encode()) > MAX_NAME_BYTES:
        name = name[1:]  # the ending says what it is
    return name or "file"


def _disk_full() -> Exhausted:
    return Exhausted(
        "The disk of the server's data folder has no room for this file: free some, then upload it again.",
        param="file",
        code="disk_full",
    )
