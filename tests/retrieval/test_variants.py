"""What is taken of a model's answer, whatever it wraps it in."""

import pytest

from retrieval.search import Query
from retrieval.variants import VARIANTS_MAX, like_the_question, prompt_for, variants_in

QUESTION = "How long is the leave?"


class TestVariantsIn:
    @pytest.mark.parametrize(
        "answer",
        [
            "duration of vacation\ndays of holidays",
            "Here are the rewritten queries:\n\n1. duration of vacation\n2) days of holidays\n",
            '- "duration of vacation"\n- “days of holidays”',
            "* **duration of vacation**\n* **days of holidays**",
            "Query 1: duration of vacation\nQuery 2: days of holidays",
            '["duration of vacation", "days of holidays"]',
            '```json\n{"queries": ["duration of vacation", "days of holidays"]}\n```',
            "<think>The user wants\nthree queries.</think>\nduration of vacation\ndays of holidays",
            "how long is the leave\nduration of vacation\nDuration  of vacation!\ndays of holidays",
        ],
    )
    def test_takes_the_queries_and_nothing_else(self, answer: str) -> None:
        found = variants_in(answer, [QUESTION])
        assert [variant.rstrip("!") for variant in found] == ["duration of vacation", "days of holidays"]

    @pytest.mark.parametrize(
        "answer", ["", "\n \n", "...", "How long is the leave", "x" * 401, "<think>Well,"]
    )
    def test_takes_nothing_where_there_is_none(self, answer: str) -> None:
        assert variants_in(answer, [QUESTION]) == []

    def test_keeps_years_and_other_scripts(self) -> None:
        answer = "2024 leave rules\n休假多长时间？\nдлина отпуска"
        assert variants_in(answer, [QUESTION]) == ["2024 leave rules", "休假多长时间？", "длина отпуска"]

    def test_leaves_out_a_line_that_was_cut_off(self) -> None:
        answer = "duration of vacation\ndays of hol"
        assert variants_in(answer, [QUESTION], cut_off=True) == ["duration of vacation"]

    def test_takes_only_so_many(self) -> None:
        answer = "\n".join(f"leave of kind {number}" for number in range(9))
        assert len(variants_in(answer, [QUESTION])) == VARIANTS_MAX

    def test_is_asked_about_each_question(self) -> None:
        assert "first {x}\nsecond" in prompt_for(["first {x}", "second"])


class TestLikeTheQuestion:
    def test_each_counts_as_it_is_like_the_nearest_question(self) -> None:
        questions = [Query("north", [1.0, 0.0]), Query("east", [0.0, 2.0])]
        variants = [Query("eastward", [0.0, 1.0]), Query("between", [3.0, 4.0]), Query("south", [-1.0, 0.1])]
        kept, dropped = like_the_question(questions, variants)
        assert [(query.text, query.weight) for query in kept] == [
            ("eastward", pytest.approx(1.0)),
            ("between", pytest.approx(0.8)),
        ]
        assert dropped == [pytest.approx(0.1 / 1.01**0.5)]

    def test_more_than_were_asked_for_count_no_more_together(self) -> None:
        four = [Query(f"variant {number}", [1.0]) for number in range(4)]
        kept, dropped = like_the_question([Query("question", [1.0])], four)
        assert sum(query.weight for query in kept) == pytest.approx(3.0)
        assert dropped == []

    def test_a_vector_without_length_is_like_nothing(self) -> None:
        assert like_the_question([Query("question", [1.0])], [Query("", [0.0])]) == ([], [0.0])
