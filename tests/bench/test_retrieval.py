"""The bench of the search's quality: its labels fit to their texts, and its figures are right."""

from pathlib import Path

import pytest

from bench.retrieval import missed_goals
from bench.retrieval_labels import HALVES, KINDS, UNANSWERABLE, find_quote, load_questions, ranks_of
from bench.retrieval_scores import Outcome, interval, mean, recall, reciprocal_rank
from bench.retrieval_texts import SourceText, find_texts
from bench.retrieval_variants import GIBBERISH, load_rewrites, nonsense_for
from retrieval.plain_formats import read_html, read_text

QUESTIONS = load_questions()


def content_of(text: SourceText, folder: Path) -> str:
    path = folder / text.filename
    path.write_bytes(text.data)
    return (read_html if path.suffix == ".html" else read_text)(path).text


class TestLabels:
    def test_each_quote_is_in_its_text_once(self, tmp_path: Path) -> None:
        texts, _ = find_texts()
        contents = {text.name: content_of(text, tmp_path) for text in texts if text.is_the_labelled_one}
        quotes = [
            (question.text, quote)
            for question in QUESTIONS
            if question.text in contents
            for quote in question.quotes
        ]
        assert [quote for name, quote in quotes if len(find_quote(quote, contents[name])) != 1] == []
        assert any(name.startswith("python/") for name, _ in quotes), "Python's own texts are everywhere"

    def test_are_many_of_each_kind_in_both_halves(self) -> None:
        for half in HALVES:
            own = [question for question in QUESTIONS if question.half == half]
            assert len([question for question in own if question.text]) >= 80
            assert {question.kind for question in own} == set(KINDS)
        assert len({question.text for question in QUESTIONS if question.text}) >= 40

    def test_ask_each_question_once(self) -> None:
        asked = [question.question for question in QUESTIONS]
        assert len(set(asked)) == len(asked)

    def test_have_a_quote_unless_nothing_answers(self) -> None:
        for question in QUESTIONS:
            assert (question.kind == UNANSWERABLE) == (not question.quotes) == (question.text is None)

    def test_finds_a_quote_over_the_ends_of_lines(self) -> None:
        assert find_quote("is *a* quote", "This is\n   *a*  quote.") == [(5, 21)]


class TestVariants:
    def test_each_question_has_three_rewrites(self) -> None:
        rewrites = load_rewrites()
        assert list(rewrites) == [question.question for question in QUESTIONS]
        for question, written in rewrites.items():
            assert len({question, *written}) == 4

    def test_nonsense_is_of_another_text(self) -> None:
        rewrites = load_rewrites()
        texts = {tuple(rewrites[question.question][:2]): question.text for question in QUESTIONS}
        nonsense = nonsense_for(QUESTIONS, rewrites, seed=1)
        for question in QUESTIONS:
            *others, gibberish = nonsense[question.question]
            assert texts[tuple(others)] != question.text
            assert gibberish in GIBBERISH


class TestRanks:
    def test_is_that_of_the_first_passage_which_overlaps(self) -> None:
        passages = [(0, 10), (0, 0), (15, 30), (10, 21)]
        assert ranks_of([[(20, 25)], [(5, 8)], [(40, 50)]], passages) == [3, 1, None]

    def test_does_not_count_a_passage_that_only_touches(self) -> None:
        assert ranks_of([[(10, 20)]], [(0, 10), (20, 30)]) == [None]


class TestMeasures:
    def test_recall_is_the_share_of_the_quotes_found(self) -> None:
        outcome = Outcome("t", "two-part", [2, 7])
        assert [recall(depth)(outcome) for depth in (1, 5, 10)] == [0.0, 0.5, 1.0]

    def test_reciprocal_rank_is_of_the_first_found_of_ten(self) -> None:
        ranks: list[list[int | None]] = [[None, 4], [11], [None]]
        assert [reciprocal_rank(Outcome("t", "long", each)) for each in ranks] == [0.25, 0.0, 0.0]

    def test_interval_holds_the_mean_and_is_the_same_again(self) -> None:
        outcomes = [Outcome(f"text {n % 7}", "typos", [1 + n % 3]) for n in range(60)]
        low, high = interval(outcomes, reciprocal_rank, seed=1)
        assert low < mean(outcomes, reciprocal_rank) < high
        assert interval(outcomes, reciprocal_rank, seed=1) == (low, high)

    def test_interval_is_wider_where_the_questions_of_a_text_are_alike(self) -> None:
        apart = [Outcome(f"text {n}", "long", [n % 2 + 1]) for n in range(40)]
        alike = [Outcome(f"text {n % 4}", "long", [n % 2 + 1]) for n in range(40)]
        widths = [high - low for low, high in (interval(each, recall(1), seed=2) for each in (apart, alike))]
        assert widths[1] > widths[0]


class TestGoals:
    @pytest.mark.parametrize(("hybrid", "number"), [(0.5, 0), (0.45, 2), (0.3, 4)])
    def test_hybrid_is_to_reach_the_better_part(self, hybrid: float, number: int) -> None:
        modes = {
            mode: {name: {"value": value} for name in ("recall@5", "MRR@10")}
            for mode, value in {"vector": 0.4, "full text": 0.5, "hybrid": hybrid}.items()
        }
        assert len(missed_goals(modes)) == number
