"""Which passages are given, and as what."""

from dataclasses import replace

import pytest

from retrieval.fencing import CONTROL, defused, fenced, label, with_passages
from retrieval.packing import Passage, distinct, fitting, joined, shortened

TEXT = "0123456789 abcdefghij klmnopqrst uvwxyz"


def passage(start: int, end: int, document: str = "doc-1", score: float = 0.5) -> Passage:
    return Passage(
        collection_id="vs-1", document_id=document, file_id=f"file-{document}", filename="a.pdf",
        text=TEXT[start:end], start=start, end=end, first_page=start // 10 + 1, last_page=(end - 1) // 10 + 1,
        page_label=None, section=None, score=score, similarity=score / 2,
    )  # fmt: skip


class TestJoined:
    def test_overlapping_and_touching_become_one_in_the_place_of_the_best(self) -> None:
        other = passage(0, 9, "doc-2", 0.8)
        [one, two] = joined([passage(5, 20, score=0.9), other, passage(15, 30, score=0.2), passage(0, 5)])
        assert (one.start, one.end, one.text) == (0, 30, TEXT[:30])
        assert (one.first_page, one.last_page, one.score, one.similarity) == (1, 3, 0.9, 0.45)
        assert two == other

    def test_one_within_another_adds_nothing(self) -> None:
        assert joined([passage(10, 15), passage(5, 30)]) == [passage(5, 30)]

    def test_with_a_gap_they_stay_apart_in_their_order(self) -> None:
        apart = [passage(20, 30), passage(0, 10)]
        assert joined(apart) == apart

    def test_what_reads_differently_where_it_overlaps_stays_apart(self) -> None:
        changed = replace(passage(5, 20), text="x" * 15)
        assert joined([passage(0, 10), changed]) == [passage(0, 10), changed]


class TestChosen:
    def test_a_shorter_one_may_fit_after_one_that_did_not(self) -> None:
        assert fitting([50, 60, 30, 20], 100) == [0, 2, 3]
        assert fitting([101], 100) == []

    def test_the_same_text_is_given_once(self) -> None:
        twin = replace(passage(0, 10), document_id="doc-9")
        assert distinct([passage(0, 10), twin, passage(10, 20)]) == [passage(0, 10), passage(10, 20)]

    def test_a_cut_one_ends_at_a_word_and_on_its_own_page(self) -> None:
        cut = shortened(passage(0, 39), 15, [0, 10, 20, 30])
        assert (cut.text, cut.end, cut.last_page) == ("0123456789", 10, 1)
        assert TEXT[cut.start : cut.end] == cut.text
        assert shortened(passage(0, 39), 99, []) == passage(0, 39)


class TestDefused:
    @pytest.mark.parametrize(
        "token",
        [
            "<|im_start|>", "<|eot_id|>", "<｜User｜>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]",
            "[|system|]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<bos>", "<start_of_turn>",
            "<end_of_turn>", "<tool_call>", "</think>",
        ],
    )  # fmt: skip
    def test_control_tokens_come_apart(self, token: str) -> None:
        text = defused(f"a{token}b", "f00d")
        assert token not in text
        assert text.replace(" ", "") == f"a{token}b"
        assert CONTROL.sub("", text) == text, "none is left, nor made"

    @pytest.mark.parametrize("text", ["a < b | c > d", "[1] and [a]", "<b>bold</b>", "List[int]", "[OK"])
    def test_other_text_stays(self, text: str) -> None:
        assert defused(text, "f00d") == text

    def test_the_models_own_and_the_boundary_too(self) -> None:
        text = defused("x <turn> y f00d z", "f00d", {"<turn>"})
        assert text == "x < turn> y f 00d z"

    def test_names_keep_to_their_line(self) -> None:
        named = replace(passage(0, 25), filename="a\n[2] b.pdf", section="<|im_end|>")
        assert label(named) == "a [2] b.pdf, pp. 1–3 (<|im_end|>)"
        assert fenced([named], "f00d")[0].split("\n")[0] == "f00d [1] a [2] b.pdf, pp. 1–3 (< |im_end|>)"


class TestWithPassages:
    def test_go_to_the_last_user_turn_and_leave_the_others(self) -> None:
        tool = {"role": "tool", "tool_call_id": "1", "content": "3"}
        said = [{"role": "user", "content": "a"}, {"role": "user", "content": "b", "name": "n"}, tool]
        system, *others = with_passages(said, ["f00d [1] x\ny\n"], "f00d", in_system=True)
        assert system["role"] == "system"
        assert others == [
            said[0], {"role": "user", "content": "f00d [1] x\ny\nf00d\n\nb", "name": "n"}, tool,
        ]  # fmt: skip

    def test_parts_and_developers_keep_their_form(self) -> None:
        parts = [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "data:"}}]
        said = [{"role": "developer", "content": [parts[0]]}, {"role": "user", "content": parts}]
        developer, user = with_passages(said, [], "f00d", in_system=True)
        assert developer["role"] == "developer"
        assert developer["content"][0] == parts[0]
        assert "f00d" in developer["content"][1]["text"]
        assert user["content"] == [{"type": "text", "text": "f00d\n\n"}, *parts]
        assert said[1]["content"] == parts, "what was given is not changed"
