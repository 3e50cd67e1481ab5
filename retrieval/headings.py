"""What is embedded of a chunk: its text, under the name of its document and its section.

A passage alone often does not say what it is about. What is stored, shown and searched by words is the text.
"""

from pathlib import PurePath

from retrieval.chunking import Chunk
from retrieval.tokens import EmbeddingTokenizer


def under_heading(chunk: Chunk, filename: str, tokenizer: EmbeddingTokenizer) -> tuple[str, int]:
    """Put a heading over a chunk, as far as the embedding model's limit leaves room for it.

    Returns:
        the text to embed, and how many tokens it has.
    """
    title = PurePath(filename).stem.replace("-", " ").replace("_", " ")
    for heading in ([f"{title}: {chunk.section}"] if chunk.section else []) + [title]:
        tokens = chunk.tokens + tokenizer.count(heading)
        if tokens <= tokenizer.most:
            return f"{heading}\n{chunk.text}", tokens
    return chunk.text, chunk.tokens
