"""Chunks as Postgres reads them fastest: COPY's binary format, written to a file by who embeds them.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"; pgvector's halfvec_recv.
"""

import struct
from collections.abc import Iterable
from pathlib import Path

from db.languages import SIMPLE
from retrieval.chunking import Chunk

SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
TRAILER = struct.pack("!h", -1)
NULL = struct.pack("!i", -1)
COLUMNS = (
    "project_id", "collection_id", "document_id", "position", "text", "start_char", "end_char",
    "first_page", "last_page", "section", "tokens", "configuration", "embedding",
)  # fmt: skip


def write_rows(
    path: Path,
    owner: tuple[str, str, str],
    chunks: Iterable[Chunk],
    vectors: Iterable[bytes],
    configuration: str = SIMPLE,
) -> None:
    """Write a document's chunks.

    Args:
        owner: ids of the project, the collection and the document.
        vectors: of float32, little-endian.
        configuration: the text search configuration of its words.
    """
    head = struct.pack("!h", len(COLUMNS)) + b"".join(map(_text, owner))
    configured = _text(configuration)
    with path.open("wb") as file:
        file.write(SIGNATURE)
        for position, (chunk, vector) in enumerate(zip(chunks, vectors, strict=True)):
            file.write(head)
            file.write(_integer(position) + _text(chunk.text))
            file.write(_integer(chunk.start) + _integer(chunk.end))
            file.write(_integer(chunk.first_page) + _integer(chunk.last_page))
            file.write(_text(chunk.section) + _integer(chunk.tokens) + configured)
            file.write(halfvec(vector))
        file.write(TRAILER)


def _text(value: str | None) -> bytes:
    if value is None:
        return NULL
    data = value.encode()
    return struct.pack("!i", len(data)) + data


def _integer(value: int | None) -> bytes:
    return NULL if value is None else struct.pack("!iq", 8, value)


def halfvec(vector: bytes) -> bytes:
    """A vector of float32 as a field of type halfvec: dimensions, an unused word, float16 each."""
    dimensions = len(vector) // 4
    values = struct.unpack(f"<{dimensions}f", vector)
    data = struct.pack(f"!HH{dimensions}e", dimensions, 0, *values)
    return struct.pack("!i", len(data)) + data
