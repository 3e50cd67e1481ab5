"""Text files of rows, of whatever encoding: read line by line, each of bounded length."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from db.errors import InvalidInput

HEAD_BYTES = 1024 * 1024
# No row of text that a model can be trained on is longer; a file without line ends must not fill memory.
MAX_LINE_CHARACTERS = 8 * 1024 * 1024

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK_ENCODING = "cp1252"  # what spreadsheets on Windows write
# Of the bytes of a text in a language that Windows-1252 is for. Icelandic has a tenth; what has more is
# Russian or Chinese in an encoding of its own, which would be learnt as gibberish.
MOST_HIGH_BYTES = 0.3
SAMPLE_BYTES = 4096
SURE_LETTERS = 8
BLOCK_CHARACTERS = 256 * 1024
PACKED = (
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet: export it as CSV first"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: unpack it first"),
)


def refuse_binary(head: bytes, filename: str, param: str) -> None:
    if not head.strip(b" \t\r\n\x00\xef\xbb\xbf\xff\xfe"):
        raise InvalidInput(f"{filename} is empty.", param=param)
    for mark, what in PACKED:
        if head.startswith(mark):
            raise InvalidInput(f"{filename} is {what}.", param=param)
    wide = any(head.startswith(bom) for bom, encoding in BOMS if encoding != "utf-8-sig")
    if wide or b"\x00" not in head:
        return
    start = head[:2000]
    by_turns = start[0::2].count(0), start[1::2].count(0)
    if max(by_turns) > len(start) / 4 and min(by_turns) < max(by_turns) / 10:
        raise InvalidInput(
            f"{filename} looks like UTF-16 without the mark that says so: save it as UTF-8.", param=param
        )
    line = head[: head.index(0)].count(b"\n") + 1
    raise InvalidInput(
        f"{filename} is no text file: line {line} holds a NUL byte. Give a CSV, JSONL or JSON in UTF-8, or a "
        "Parquet file.",
        param=param,
    )


def detect_encoding(path: Path, head: bytes, filename: str, *, whole: bool, param: str) -> str:
    """Find a text's encoding.

    Args:
        whole: look at every byte, and not at the head alone.
    Raises:
        InvalidInput: it is neither UTF-8, -16 or -32, nor what spreadsheets on Windows write.
    """
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return encoding
    if not whole:
        found = _first_that_is_not_utf8([head])  # which may end inside a character
    else:
        with path.open("rb") as file:
            found = _first_that_is_not_utf8(iter(lambda: file.read(HEAD_BYTES), None))
    if found is None:
        return "utf-8"
    line, letters, around = found
    is_dense = sum(byte >= 0x80 for byte in around) > MOST_HIGH_BYTES * len(around)
    # A few letters may come out of another encoding by chance.
    if letters >= (SURE_LETTERS if is_dense else 1):
        raise InvalidInput(
            f"Line {line} of {filename} is not UTF-8, though what comes before it is: the file mixes "
            "encodings, or is cut off. Save all of it as UTF-8.",
            param=param,
        )
    if is_dense:
        raise InvalidInput(
            f"Line {line} of {filename} is neither UTF-8 nor Windows-1252: save it as UTF-8.", param=param
        )
    return FALLBACK_ENCODING


def _first_that_is_not_utf8(blocks: Iterable[bytes]) -> tuple[int, int, bytes] | None:
    """The line, how many letters beyond ASCII come before (or enough of them), and the bytes around it.

    Args:
        blocks: an empty one is the end; without it, the last one may end inside a character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, letters, tail = 1, 0, b""
    for block in blocks:
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            at = len(tail) + error.start
            around = (tail + error.object)[max(0, at - SAMPLE_BYTES) : at + SAMPLE_BYTES]
            return line + before.count(b"\n"), letters + _beyond_ascii(before.decode()), around
        if not block:
            return None
        line += block.count(b"\n")
        tail = block[-SAMPLE_BYTES:]
        if letters < SURE_LETTERS:
            letters += _beyond_ascii(text)
    return None


def _beyond_ascii(text: str) -> int:
    return 0 if text.isascii() else sum(character > "\x7f" for character in text)


@contextmanager
def open_lines(path: Path, encoding: str, param: str) -> Iterator[Iterator[str]]:
    """Open a text file as lines of bounded length, their ends as they are."""
    with path.open(encoding=encoding, newline="") as text:
        yield _bounded_lines(text, encoding, param)


def read_blocks(path: Path, encoding: str, param: str) -> Iterator[str]:
    """A text file in pieces, for what is not read line by line.

    Raises:
        InvalidInput: it is not in that encoding.
    """
    line = 1
    with path.open(encoding=encoding, newline="") as text:
        while block := _decoded(lambda: text.read(BLOCK_CHARACTERS), line, encoding, param):
            line += block.count("\n")
            yield block


def _decoded(read: Callable[[], str], line: int, encoding: str, param: str) -> str:
    try:
        return read()
    except UnicodeError as error:  # UTF-16 without its mark is one of these alone
        why = getattr(error, "reason", error)
        raise InvalidInput(
            f"Line {line} or soon after is not {encoding.upper()}: {why}. Save the file as UTF-8.",
            param=param,
        ) from None


def _bounded_lines(text: TextIO, encoding: str, param: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        line = _decoded(lambda: text.readline(MAX_LINE_CHARACTERS), number, encoding, param)
        if not line:
            return
        if len(line) == MAX_LINE_CHARACTERS and not line.endswith(("\n", "\r")):
            raise InvalidInput(
                f"Line {number} is longer than {MAX_LINE_CHARACTERS} characters: put each row on a line of "
                "its own.",
                param=param,
            )
        yield line
