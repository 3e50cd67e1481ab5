"""Rows as tokens, on disk beside the rows themselves: what was encoded once is not encoded again.

A record is a row: how many bytes follow, and then for each of its conversations how many tokens it has, their
ids (int32) and whether it is the assistant's (a byte). Numbers are in the machine's own order of bytes:
these files stay with the storage root.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import IO

from training_data.rows import Row, read_prepared
from training_data.tokens import ChatTokenizer, EncodedChat, encode_row

COUNT = Struct("=I")
ID_BYTES = 4
SUFFIX = ".tokens"


def tokens_of(rows: Path) -> Path:
    """Where the tokens of a file of rows lie."""
    return rows.with_suffix(SUFFIX)


def record_of(chats: list[EncodedChat]) -> bytes:
    """A row's record; of its conversations, the ids and what of them is the assistant's."""
    parts = []
    for chat in chats:
        parts += [COUNT.pack(len(chat.ids)), array("i", chat.ids).tobytes(), bytes(chat.answer_mask)]
    record = b"".join(parts)
    return COUNT.pack(len(record)) + record


def read_records(file: IO[bytes]) -> Iterator[bytes]:
    """Each record as it was written, its length included.

    Raises:
        ValueError: the file ends within a record.
    """
    while length := file.read(COUNT.size):
        record = file.read(COUNT.unpack(length)[0])
        if len(record) < COUNT.unpack(length)[0]:
            raise ValueError(f"{file.name} ends within a row")
        yield length + record


def encoded_rows(path: Path, tokenizer: ChatTokenizer) -> Iterator[tuple[Row, list[EncodedChat]]]:
    """The prepared rows of `path` with their tokens: as they were encoded when they were read, or encoded now
    where that was not kept.
    """
    tokens = tokens_of(path)
    if not tokens.is_file():
        yield from ((row, encode_row(row, tokenizer)) for row in read_prepared(path))
        return
    with tokens.open("rb") as file:
        for row, record in zip(read_prepared(path), read_records(file), strict=True):
            yield row, list(_chats(record))


def _chats(record: bytes) -> Iterator[EncodedChat]:
    view, start = memoryview(record), COUNT.size
    while start < len(view):
        ids = start + COUNT.size
        mask = ids + ID_BYTES * COUNT.unpack_from(view, start)[0]
        start = mask + (mask - ids) // ID_BYTES
        learnt: list[bool] = view[mask:start].cast("?").tolist()  # type: ignore[assignment]
        yield EncodedChat(view[ids:mask].cast("i").tolist(), learnt)
