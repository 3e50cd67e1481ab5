"""The heading over a chunk that is embedded."""

from retrieval.chunking import Chunk
from retrieval.headings import under_heading
from retrieval.tokens import EmbeddingTokenizer

TOKENIZER = EmbeddingTokenizer(max_tokens=32)


def chunk(text: str, section: str | None = None) -> Chunk:
    return Chunk(text, 0, len(text), TOKENIZER.count(text), None, None, section)


class TestUnderHeading:
    def test_is_the_documents_name_and_the_section(self) -> None:
        text, tokens = under_heading(chunk("It has 30 days.", "Holidays"), "staff-hand_book.pdf", TOKENIZER)
        assert text == "staff hand book: Holidays\nIt has 30 days."
        assert tokens == TOKENIZER.count(text)

    def test_is_the_name_alone_without_a_section(self) -> None:
        assert under_heading(chunk("It has 30 days."), "rules.md", TOKENIZER)[0] == "rules\nIt has 30 days."

    def test_leaves_out_a_section_that_does_not_fit(self) -> None:
        text, _ = under_heading(chunk("It has 30 days.", "long " * 40), "rules.md", TOKENIZER)
        assert text == "rules\nIt has 30 days."

    def test_never_goes_over_the_models_limit(self) -> None:
        full = chunk("day " * TOKENIZER.most)
        assert under_heading(full, "rules.md", TOKENIZER) == (full.text, TOKENIZER.most)
