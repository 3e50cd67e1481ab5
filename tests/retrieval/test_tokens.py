"""Tokens of the embedding model, held against its tokenizer as it is."""

import pydoc_data.topics

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import CharDelimiterSplit

from retrieval import tokens
from retrieval.tokens import EmbeddingTokenizer
from serving.embedding_weights import weights_folder

TEXTS = {
    "English": "\n\n".join(list(pydoc_data.topics.topics.values())[:20]),
    "other letters": "Größe, naïve café — ﬁne.\u00a0Ωμέγα  Привет\tмир\u2003नमस्ते 한국어 e\u0301 İstanbul",
    "no spaces": "\u65e5\u672c\u8a9e\u306e\u6587\u3002\u7b2c\u4e8c\u306e\u6587\uff01" * 40,
    "odd characters": "a\u200bb \x07bell\x1fs nul\x00 \x0cfeed \x0bv \x85 \u2028line\u2029 \ufeffmark",
    "odd words": "\U0001f600! [MASK] [SEP]x ##ing 1.5e-3 http://example.org/a?b=c don't",
    "long words": f"{'a' * 99} {'b' * 100} {'c' * 101} {'d-' * 300} e",
    "white space alone": " \n\t ",
    "nothing": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_tokens_of_words_are_those_of_the_whole_text(text: str) -> None:
    whole = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    whole.no_truncation()
    whole.no_padding()
    expected = whole.encode(text, add_special_tokens=False)
    tokenizer = EmbeddingTokenizer()
    for _ in range(2):  # as they are found, and as they are remembered
        assert tokenizer.starts(text) == [start for start, _ in expected.offsets]
        assert tokenizer.count(text) == len(expected.ids)


def test_forgets_words_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EmbeddingTokenizer().starts(TEXTS["English"])
    monkeypatch.setattr(tokens, "REMEMBERED_WORDS", 10)
    tokenizer = EmbeddingTokenizer()
    assert tokenizer.starts(TEXTS["English"]) == whole
    assert len(tokenizer._known) <= 10


def test_a_tokenizer_that_looks_across_spaces_is_given_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    own = Tokenizer(WordPiece({"[UNK]": 0, "new york": 1, "is": 2}, unk_token="[UNK]"))
    own.pre_tokenizer = CharDelimiterSplit("_")
    own.save(str(path))
    tokenizer = EmbeddingTokenizer(path)
    assert tokenizer.count("new york_is") == 2
    assert tokenizer.starts("new york_is") == [0, 9]
