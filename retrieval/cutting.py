"""Cutting in a reader's process: a text can be as hostile as the file that it came from, and several
documents are cut on several cores."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retrieval.chunking import Chunking, cut
from retrieval.content import Content
from retrieval.readers import Clock, Readers, Unreadable
from retrieval.tokens import EmbeddingTokenizer, shared_tokenizer

SECONDS = 30.0
# Ten times what a core takes for English.
SECONDS_A_MEGABYTE = 60.0


def cut_in_reader(
    path: Path, characters: int, chunking: Chunking, tokenizer: EmbeddingTokenizer, readers: Readers
) -> list[dict[str, Any]]:
    """Cut the text of a `Content` that lies at `path` as JSON.

    Returns:
        the chunks without their texts, which the content has.
    Raises:
        Unreadable: it takes too much time or memory.
    """
    task = {
        "task": "cut",
        "path": str(path),
        **asdict(chunking),
        "tokenizer": str(tokenizer.path) if tokenizer.path is not None else None,
        "limit": tokenizer.max_tokens,
    }
    clock = Clock(SECONDS + characters / 1e6 * SECONDS_A_MEGABYTE)
    chunks: list[dict[str, Any]] = readers.do(task, clock=clock)["chunks"]
    if not chunks:
        raise Unreadable("It has no text.", code="empty_file")
    return chunks


def cut_content(
    path: str, max_tokens: int, overlap_tokens: int, tokenizer: str | None, limit: int
) -> dict[str, Any]:
    """The task itself."""
    content = Content.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    own = Path(tokenizer) if tokenizer is not None else None
    chunks = cut(content, Chunking(max_tokens, overlap_tokens), shared_tokenizer(own, limit))
    return {
        "chunks": [{name: value for name, value in vars(chunk).items() if name != "text"} for chunk in chunks]
    }
