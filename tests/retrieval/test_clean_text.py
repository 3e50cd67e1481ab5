"""What is kept of text, and what becomes of it."""

import pytest

from retrieval.clean_text import clean, join_broken_words


class TestClean:
    @pytest.mark.parametrize(
        ("read", "kept"),
        [
            ("e\u0301", "\u00e9"),  # NFC
            ("ﬁnd the oﬃce", "find the office"),
            ("x² ½ ™ ＡＢ", "x² ½ ™ ＡＢ"),  # meant so by their author
            ("\u2f08\u2f00", "人一"),  # Kangxi radicals
            ("\ufeb3\ufefc\ufee1", "سلام"),  # Arabic presentation forms
            ("שלום", "שלום"),
            ("soft\u00adhyphen", "softhyphen"),
            ("a\ufeffb\x01c", "abc"),
            ("a\r\nb\rc\x0cd", "a\nb\nc\nd"),
            ("a  \n\n\n\n\nb ", "a\n\nb"),
            ("half \ud800 pair", "half  pair"),
        ],
    )
    def test_keeps_meaning_and_drops_typesetting(self, read: str, kept: str) -> None:
        assert clean(read) == (kept, 0)

    def test_counts_the_nuls_that_it_drops(self) -> None:
        assert clean("a\0b\0") == ("ab", 2)

    def test_is_idempotent(self) -> None:
        once, _ = clean("ﬁ\u0301\r\n\n\n\n\u2f08 \0x")
        assert clean(once) == (once, 0)


class TestJoinBrokenWords:
    @pytest.mark.parametrize(
        ("lines", "joined"),
        [
            ("inter-\nnational", "international"),
            ("inter\u00ad\nnational", "international"),
            ("inter\ufffenational", "international"),  # as pdfium says it
            ("Baden-\nBaden", "Baden-Baden"),
            ("Di\ufffea\ufffelog", "Dialog"),
            ("\ufffeb 1-\nb", "-b 1-\nb"),
            ("2020-\n2021", "2020-\n2021"),
            ("a list:\n- one\n- two", "a list:\n- one\n- two"),
        ],
    )
    def test_only_where_a_small_letter_follows(self, lines: str, joined: str) -> None:
        assert join_broken_words(lines) == joined
