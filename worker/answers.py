"""The answers of a job that asks a model for each row: a line a row, appended as they come.

What a line says is true from the moment that it is written whole, whoever is killed then. The next attempt
takes the file over by a hard link, cuts off the line that its predecessor could not finish, and writes on.

    {"row": 7, "status": 200, "body": {…}}
    {"row": 8, "status": 503, "error": {"message": …, "type": …, "param": …, "code": …}}
"""

import json
import os
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from db.disk import link_or_copy

REQUESTS = "requests.jsonl"
ANSWERS = "answers.jsonl"
LINE = re.compile(rb'\{"row": (\d+), "status": (\d+), ')
NOT_ANSWERED = -1

JSON = dict[str, Any]


class AnswerLog:
    """Takes answers, each row's once.

    Args:
        path: in the attempt's own folder; what is there already counts.
        rows: how many there are, numbered from 1.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.answered = self.failed = 0
        self._seen = bytearray(rows + 1)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        whole = 0
        for offset, row, status, line in _lines(path):
            whole = offset + len(line)
            self._count(row, status)
        os.truncate(path, whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        os.close(self._file)

    def __contains__(self, row: int) -> bool:
        return bool(self._seen[row])

    def add(self, row: int, status: int, **said: Any) -> None:
        """Keep a row's answer: its `body`, or its `error`."""
        line = memoryview(json.dumps({"row": row, "status": status, **said}).encode() + b"\n")
        start = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.truncate(self._file, start)  # half a line would spoil the next one
            raise
        self._count(row, status)

    def sync(self) -> None:
        """Bring it to the disk, so that a host that dies loses no more than was said since."""
        os.fsync(self._file)

    def _count(self, row: int, status: int) -> None:
        if self._seen[row]:
            return
        self._seen[row] = 1
        if status < 400:
            self.answered += 1
        else:
            self.failed += 1


def take_over(attempt_folder: Path) -> Path:
    """The file of answers of an attempt, with those of the newest attempt before it that has any."""
    own = attempt_folder / ANSWERS
    for number in range(int(attempt_folder.name) - 1, 0, -1):
        earlier = attempt_folder.with_name(str(number)) / ANSWERS
        if earlier.is_file():
            link_or_copy(earlier, own)
            break
    return own


def paired(requests: Path, answers: Path, rows: int) -> Iterator[tuple[JSON, JSON | None]]:
    """Each request in the order of its row, with its answer if it has one."""
    places = array("q", [NOT_ANSWERED]) * (rows + 1)
    if answers.is_file():
        for offset, row, _, _ in _lines(answers):
            if places[row] == NOT_ANSWERED:
                places[row] = offset
    with (
        requests.open("rb") as asked,
        (answers if answers.is_file() else Path(os.devnull)).open("rb") as said,
    ):
        for line in asked:
            request: JSON = json.loads(line)
            place = places[request["row"]]
            if place == NOT_ANSWERED:
                yield request, None
                continue
            said.seek(place)
            yield request, json.loads(said.readline())


def _lines(path: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Of each whole line: where it begins, its row, its status, and itself."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            match = LINE.match(line)
            if match is None or not line.endswith(b"\n"):
                return
            yield offset, int(match[1]), int(match[2]), line
            offset += len(line)
