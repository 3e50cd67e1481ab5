"""Whatever is wrong with a file is told by its place and with what to do, in bounded memory."""

import json
import re
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from db.errors import InvalidInput
from tests.training_data.broken_files import Broken, broken_files
from training_data.formats import RowReader, check_file, detect_format
from training_data.text_files import MAX_LINE_CHARACTERS

FILES = broken_files()
MEBIBYTE = 1024**2


def read(path: Path) -> int:
    return sum(1 for _ in RowReader(detect_format(path, path.name)))


def refusal(path: Path) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        read(path)
    return caught.value


class TestBrokenFiles:
    def test_there_are_two_hundred(self) -> None:
        assert len({file.name for file in FILES}) == len(FILES) >= 200

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
    def test_each_is_refused_with_place_and_fix(self, tmp_path: Path, file: Broken) -> None:
        path = tmp_path / file.filename
        path.write_bytes(file.content)
        error = refusal(path)
        assert re.search(file.says, error.message, re.DOTALL), error.message
        assert error.param == "training_file"
        assert len(error.message) < 2500
        json.dumps(error.message, ensure_ascii=False).encode()  # as an answer, and a row, will hold it
        # What a submit looks at may be too little to tell, but it never is another trouble.
        with suppress(InvalidInput):
            check_file(path, file.filename, method=None)


def endless(begin: bytes, more: bytes, size: int) -> Iterator[bytes]:
    yield begin
    for _ in range(size // len(more)):
        yield more


LINES, QUOTES = (b"x" * 999 + b"\n") * 64, (b"x" * 999 + b'\n","') * 64
# The beginning of a file, and what it goes on with, for as long as there is room.
ENDLESS = {
    "a line": ("rows.csv", b"question,answer\na?,", b"x" * MEBIBYTE, "Line 2 is longer than"),
    "a JSON line": ("rows.jsonl", b'{"prompt": "a", "completion": "', b"x" * MEBIBYTE, "Line 1 is longer"),
    "a value of an array": ("rows.json", b'[{"prompt": "a", "completion": "', b"x" * MEBIBYTE, "Row 1"),
    "an open quote": ("rows.csv", b'question,answer\na?,"', LINES, "line 2 .* never closed"),
    "quotes that open and close": ("rows.csv", b'question,answer\na?,"', QUOTES, "begins in line 2"),
    "an array in an array": ("rows.json", b"[", b'[ "a",\n' * 4096, "Row 1"),
    "UTF-16": ("rows.csv", "\ufeffquestion,answer\na?,".encode("utf-16-le"), b"x\0" * MEBIBYTE, "longer"),
    "a header": ("rows.csv", b"question,", b"answer," * 4096, "Line 1 is longer"),
}  # fmt: skip


class TestBoundedMemory:
    @pytest.mark.parametrize("name", ENDLESS)
    def test_of_what_never_ends(self, tmp_path: Path, name: str) -> None:
        self.is_bounded(tmp_path, name, 3 * MAX_LINE_CHARACTERS)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ENDLESS)
    def test_of_a_gigabyte(self, tmp_path: Path, name: str) -> None:
        self.is_bounded(tmp_path, name, 1024**3)

    def is_bounded(self, folder: Path, name: str, size: int) -> None:
        filename, begin, more, says = ENDLESS[name]
        path = folder / filename
        try:
            with path.open("wb") as out:
                out.writelines(endless(begin, more, size))
            tracemalloc.start()
            try:
                error = refusal(path)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        finally:
            path.unlink()  # pytest keeps folders, and eight gigabytes are too much to keep
        assert re.search(says, error.message, re.DOTALL), error.message
        assert peak < 160 * MEBIBYTE

    def test_of_an_array_on_one_line(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.json"
        row = json.dumps({"prompt": "a?", "completion": "A" * 5000})
        path.write_text("[" + ",".join([row] * 3_000) + "]")
        tracemalloc.start()
        assert read(path) == 3_000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * MEBIBYTE
