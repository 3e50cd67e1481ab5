"""Tokens of the embedding model: how long a chunk may be, and how long a text is."""

import contextlib
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

from db.errors import Unavailable
from serving.embedding_weights import weights_folder

# What sentence-transformers' card of all-MiniLM-L6-v2 says; beyond it training has not taught it anything.
MAX_TOKENS = 256
SPECIAL_TOKENS = 2
# BERT's white space is Unicode's; of the control characters, which it drops, only these three are.
WORD = re.compile("[^ \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
# Whose tokens are remembered: some 20 MB of them at most.
REMEMBERED_WORDS = 50_000
REMEMBERED_CHARACTERS = 40


class EmbeddingTokenizer:
    """Counts as the embedding model does.

    Args:
        path: a tokenizer.json; None: that of the embedding model `default`.
        max_tokens: of one input, the special ones included.
    """

    def __init__(self, path: Path | None = None, *, max_tokens: int = MAX_TOKENS) -> None:
        self.path = path
        self.max_tokens = max_tokens
        self._known: dict[str, list[int]] = {}

    @property
    def most(self) -> int:
        """The tokens of a text that fits."""
        return self.max_tokens - SPECIAL_TOKENS

    @cached_property
    def _tokenizer(self):  # type: ignore[no-untyped-def]
        from tokenizers import Tokenizer

        path = self.path or weights_folder() / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise Unavailable(
                f"The embedding model's tokenizer {path} cannot be read: {error}", code="tokenizer_missing"
            ) from error
        # Those of the file cut every text at 128.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def count(self, text: str) -> int:
        if not self._splits_at_spaces:
            return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return sum(len(begins) for _, begins in self._words(text))

    def starts(self, text: str) -> list[int]:
        """The character at which each token begins."""
        if not self._splits_at_spaces:
            return self._encode(text)
        return [place + begin for place, begins in self._words(text) for begin in begins]

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether no token depends on what is beyond the spaces around its word, as with BERT. Then each word
        is tokenized once, however often it comes: a third of the time for English."""
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer

        tokenizer = self._tokenizer
        return isinstance(tokenizer.pre_tokenizer, BertPreTokenizer) and isinstance(
            tokenizer.normalizer, BertNormalizer
        )

    def _words(self, text: str) -> Iterator[tuple[int, list[int]]]:
        """Where each word begins, and where in it each of its tokens does."""
        known = self._known
        for word in WORD.finditer(text):
            begins = known.get(word[0])
            if begins is None:
                begins = self._encode(word[0])
                if len(known) >= REMEMBERED_WORDS:
                    known.clear()
                if len(word[0]) <= REMEMBERED_CHARACTERS:
                    known[word[0]] = begins
            yield word.start(), begins

    def _encode(self, text: str) -> list[int]:
        return [start for start, _ in self._tokenizer.encode(text, add_special_tokens=False).offsets]


@cache
def shared_tokenizer(path: Path | None, max_tokens: int) -> EmbeddingTokenizer:
    """The one of this process, and of its copies: to load it takes as long as to cut a short text."""
    return EmbeddingTokenizer(path, max_tokens=max_tokens)


def warm_default_tokenizer() -> None:
    """Load the shared one of the model `default`, if it is installed, for the copies of this process."""
    with contextlib.suppress(Unavailable):
        shared_tokenizer(None, MAX_TOKENS).count("")
