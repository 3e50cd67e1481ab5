"""Cut a text into chunks that the embedding model can take whole, each with its place in the text."""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from db.errors import InvalidInput
from retrieval.content import Content
from retrieval.tokens import EmbeddingTokenizer

# From the largest unit of meaning to the smallest. CJK has no spaces, and ends its sentences otherwise.
SEPARATORS = [r"\n\n", r"\n", r"(?<=[.!?])\s", r"(?<=[。！？；])", r"\s", ""]
AUTO_TOKENS = 220
AUTO_OVERLAP_TOKENS = 40
SEGMENT_CHARACTERS = 500_000
# The model takes a long word without spaces for one unknown token; a chunk of such words has to end, too.
CHARACTERS_A_TOKEN = 16
SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Chunking:
    """How long chunks are, and by how much they overlap, in tokens of the embedding model."""

    max_tokens: int = AUTO_TOKENS
    overlap_tokens: int = AUTO_OVERLAP_TOKENS

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not 0 <= self.overlap_tokens <= self.max_tokens // 2:
            raise InvalidInput(
                "chunk_overlap_tokens must be between 0 and half of max_chunk_size_tokens.",
                param="chunking_strategy",
            )

    def within(self, most: int) -> "Chunking":
        """The same for a model that takes at most so many tokens."""
        if self.max_tokens <= most:
            return self
        return Chunking(most, min(self.overlap_tokens, most // 2))


@dataclass(frozen=True)
class Chunk:
    """Characters `start` to before `end` of a document's text."""

    text: str
    start: int
    end: int
    tokens: int
    first_page: int | None
    last_page: int | None
    section: str | None


def cut(content: Content, chunking: Chunking, tokenizer: EmbeddingTokenizer) -> list[Chunk]:
    """Cut a document. Each chunk is the very text between its offsets, within the model's limit."""
    chunking = chunking.within(tokenizer.most)
    return [
        Chunk(
            content.text[start:end],
            start,
            end,
            tokens,
            content.page_at(start),
            content.page_at(end - 1),
            content.section_at(start),
        )
        for start, end, tokens in _spans(content.text, chunking, tokenizer)
    ]


def _spans(text: str, chunking: Chunking, tokenizer: EmbeddingTokenizer) -> Iterator[tuple[int, int, int]]:
    """Where the chunks are, and their tokens. The splitter cuts without overlap, so that the place of each
    piece is certain even where a text repeats itself; then each is prolonged backwards."""
    end = before = -1
    begins: list[int] = []
    for segment_start, segment in _segments(text):
        own = tokenizer.starts(segment)
        begins = [*begins[len(begins) - chunking.overlap_tokens :], *(segment_start + place for place in own)]
        for piece in _pieces(segment, own, chunking):
            start = text.index(piece, max(0, end))  # nothing but white space lies between
            end = start + len(piece)
            begin = _overlapping_start(text, start, chunking.overlap_tokens, begins)
            tokens = tokenizer.count(text[begin:end])
            # Never as far back as the chunk before, which would then be part of this one.
            if before < begin and tokens <= tokenizer.most:
                yield begin, end, tokens
                before = begin
            else:
                yield from _within_limit(piece, start, tokenizer)
                before = start


def _pieces(segment: str, begins: list[int], chunking: Chunking) -> list[str]:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        separators=SEPARATORS,
        is_separator_regex=True,
        keep_separator="end",
        chunk_size=chunking.max_tokens - chunking.overlap_tokens,
        chunk_overlap=0,
        length_function=_Lengths(segment, begins).of,
    )
    return splitter.split_text(segment)


class _Lengths:
    """The lengths of a text's pieces by its tokens, which are found once: to tokenize every piece, at every
    level of the splitter, took twice the time of all the rest of an ingest.

    Args:
        begins: the character at which each token of the text begins.
    """

    def __init__(self, text: str, begins: list[int]) -> None:
        self._text, self._begins = text, begins
        self._known: dict[str, int] = {"": 0}
        self._from = 0

    def of(self, piece: str) -> int:
        if piece not in self._known:
            # The splitter goes from left to right, and into a piece before the next. Should the same stand
            # elsewhere before it, then that is as long.
            self._from = start = self._text.index(piece, self._from)
            end = start + len(piece)
            tokens = bisect_left(self._begins, end) - bisect_left(self._begins, start)
            self._known[piece] = max(1, tokens, len(piece) // CHARACTERS_A_TOKEN)
        return self._known[piece]


def _overlapping_start(text: str, start: int, tokens: int, begins: list[int]) -> int:
    """Where a chunk begins that shares at most so many tokens with what is before `start`: at a word."""
    this = bisect_left(begins, start)
    first = max(this - tokens, bisect_left(begins, start - tokens * CHARACTERS_A_TOKEN), 0)
    if first >= this:
        return start
    place = begins[first]
    if place and not text[place - 1].isspace():
        space = SPACE.search(text, place, start)
        place = space.end() if space is not None else place
    return place


def _segments(text: str) -> Iterator[tuple[int, str]]:
    """Parts of a long text and where each begins, at ends of paragraphs where there are some: the splitter's
    memory is bounded."""
    start = 0
    while len(text) - start > SEGMENT_CHARACTERS:
        end = text.rfind("\n\n", start + 1, start + SEGMENT_CHARACTERS)
        end = end if end > start else start + SEGMENT_CHARACTERS
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _within_limit(piece: str, start: int, tokenizer: EmbeddingTokenizer) -> Iterator[tuple[int, int, int]]:
    """Cut a piece that is longer than the model takes, if need be in the middle of a word."""
    begins = [0] if tokenizer.count(piece) <= tokenizer.most else tokenizer.starts(piece)[:: tokenizer.most]
    for begin, end in zip(begins, [*begins[1:], len(piece)], strict=True):
        yield start + begin, start + end, tokenizer.count(piece[begin:end])
