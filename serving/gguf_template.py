"""A GGUF file with a chat template that it did not bring: one more pair in its header, all else as it was."""

import os
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

from serving.gguf_header import STRING, Header, aligned

TEMPLATE_KEY = "tokenizer.chat_template"
COUNTS_BYTES = 24  # magic, version, number of tensors, number of pairs
COPIED_BYTES = 16 * 1024**2


def write_with_chat_template(source: Path, target: Path, header: Header, template: str) -> None:
    """Copy a GGUF file and add a chat template.

    Args:
        header: of the source, which has none.
    """
    with source.open("rb") as reading, target.open("wb") as writing:
        start, pairs = struct.unpack("<16sQ", reading.read(COUNTS_BYTES))
        writing.write(struct.pack("<16sQ", start, pairs + 1))
        _copy(reading, writing, header.pairs_end - COUNTS_BYTES)
        writing.write(_text(TEMPLATE_KEY) + struct.pack("<I", STRING) + _text(template))
        # Where each tensor lies is told from the first one on, so that only this place moves.
        _copy(reading, writing, header.tensors_end - header.pairs_end)
        writing.write(bytes(aligned(writing.tell(), header.alignment) - writing.tell()))
        reading.seek(aligned(header.tensors_end, header.alignment))
        shutil.copyfileobj(reading, writing, COPIED_BYTES)
        writing.flush()
        os.fsync(writing.fileno())


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _copy(reading: BinaryIO, writing: BinaryIO, size: int) -> None:
    writing.write(reading.read(size))
