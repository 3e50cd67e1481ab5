"""The benchmark of documents: how texts and neighbours are compared, and which results meet the goals."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench import document_reading
from bench.document_reading import agreement, letters, words
from bench.document_vectors import DIMENSIONS, DOCUMENTS, NEAREST, Synthetic, nearest, recall
from bench.documents import Findings, goals_of
from bench.spent import Stopwatch

READ = {
    "words_agree": 0.99,
    "cpu": {"text": 1.0, "peer_text": 6.0},
    "wall": {"ingest": 1.0, "peer_ingest": 4.0},
}
QUERIES = [
    {"side": side, "filtered": filtered, "clients": clients, "per_second": rate * clients, "recall": 0.97}
    for side, filtered, rate in (
        ("lathe", False, 700), ("peer", False, 600), ("lathe", True, 300), ("peer", True, 10),
    )
    for clients in (1, 2)
]  # fmt: skip
GROWN = {
    "vectors": 10_000,
    "lathe": {"load_seconds": 1.0, "build_seconds": 2.0},
    "peer": {"load_seconds": 9.0},
    "queries": QUERIES,
}
ALONE = {"files": ["a"], "chunks": 16, "ratio": 1.6, "of_embedder": 0.95}
LARGE = {"files": ["a", "b"], "chunks": 400, "ratio": 1.6, "of_embedder": 0.95}
FOUND: dict[str, Any] = {
    "reading": [READ, READ, {**READ, "words_agree": 0.2}],
    "searchable": [
        {**ALONE, "ratio": 0.5, "of_embedder": 0.4},
        ALONE,
        {**ALONE, "ratio": 2.5},
        {"files": ["a", "b"], "chunks": 90, "ratio": 0.5, "of_embedder": 0.4},
        LARGE,
    ],
    "loads": {"copy": {"median_per_second": 30_000}, "executemany": {"median_per_second": 10_000}},
    "growth": [GROWN, {key: value for key, value in GROWN.items() if key != "peer"}],
}


class TestAgreement:
    def test_ligatures_and_words_broken_across_lines_are_the_same_words(self) -> None:
        assert agreement(words("The e\ufb03cient compila-\ntion"), words("the efficient compilation")) == 1

    def test_words_that_run_together_differ_though_their_letters_do_not(self) -> None:
        assert agreement(words("one two three"), words("onetwothree")) == 0
        assert agreement(letters("one two three"), letters("onetwothree")) == 1

    def test_chinese_is_compared_character_by_character(self) -> None:
        assert agreement(words("文件检索"), words("文件检验")) == pytest.approx(0.75)


class TestNearest:
    @pytest.mark.parametrize("document", [None, 7])
    def test_finds_what_sorting_all_finds(self, document: int | None) -> None:
        source = Synthetic(1)
        vectors, queries = source.draw(DOCUMENTS * 20), source.draw(5)
        rows = np.arange(len(vectors)) if document is None else np.arange(document, len(vectors), DOCUMENTS)
        expected = [set(rows[np.argsort(-(vectors[rows] @ query))[:NEAREST]]) for query in queries]
        assert nearest(vectors, queries, document) == expected

    def test_vectors_are_the_same_for_the_same_seed(self) -> None:
        assert np.array_equal(Synthetic(3).draw(10), Synthetic(3).draw(10))
        assert Synthetic(3).draw(1).shape == (1, DIMENSIONS)

    def test_recall_is_the_share_that_was_found(self) -> None:
        assert recall([[1, 2], [3, 9]], [{1, 2}, {3, 4}]) == 0.75


class TestGoals:
    def test_all_can_be_met(self) -> None:
        assert [goal["what"] for goal in goals_of(FOUND) if not goal["met"]] == []

    @pytest.mark.parametrize(
        ("part", "worse"),
        [
            ("reading", [{**READ, "cpu": {"text": 1.0, "peer_text": 4.9}}]),
            ("reading", [{**READ, "words_agree": 0.97}]),
            ("searchable", [ALONE, {**LARGE, "of_embedder": 0.89}]),
            ("searchable", [ALONE, {**LARGE, "ratio": 1.4}]),
            ("searchable", [ALONE, {**ALONE, "ratio": 1.4}, {**ALONE, "ratio": 1.3}, LARGE]),
            ("searchable", [{**ALONE, "of_embedder": 0.89}, LARGE]),
            ("loads", {"copy": {"median_per_second": 2}, "executemany": {"median_per_second": 1}}),
            ("growth", [{**GROWN, "peer": {"load_seconds": 7.4}}]),
            ("growth", [{**GROWN, "queries": [{**row, "recall": 0.9} for row in QUERIES if row["filtered"]]
                         + [row for row in QUERIES if not row["filtered"]]}]),
        ],
    )  # fmt: skip
    def test_each_can_be_missed(self, part: str, worse: Any) -> None:
        assert [goal["met"] for goal in goals_of({**FOUND, part: worse})].count(False) == 1


def test_the_stopwatch_counts_this_process_and_others() -> None:
    with Stopwatch(list) as watch:
        total = sum(number * number for number in range(300_000))
    assert total > 0
    assert watch.spent.cpu > 0
    with Stopwatch(lambda: [psutil.Process()]) as twice:
        sum(number * number for number in range(300_000))
    assert twice.spent.cpu > 0


class TestFindings:
    def test_what_is_known_already_outlives_a_run_that_is_ended(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        kept = tmp_path / "found.json"
        found = Findings(kept, {"seed": 1})
        found.add("reading", {"file": "a.pdf"})
        assert json.loads(kept.read_text()) == {"seed": 1, "reading": [{"file": "a.pdf"}]}
        found.add("reading", {"file": "b.pdf"})
        found["loads"] = {"rows": 3}
        assert json.loads(kept.read_text()) == found
        told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert told == [
            {"reading": {"file": "a.pdf"}},
            {"reading": {"file": "b.pdf"}},
            {"loads": {"rows": 3}},
        ]


class TestRounds:
    @pytest.mark.parametrize(("enough_seconds", "runs"), [(3600.0, 3), (0.0, 1)])
    def test_a_file_that_takes_long_is_read_in_fewer(
        self, monkeypatch: pytest.MonkeyPatch, enough_seconds: float, runs: int
    ) -> None:
        monkeypatch.setattr(document_reading, "ENOUGH_SECONDS", enough_seconds)
        done: Counter[str] = Counter()
        works = {name: lambda name=name: done.update([name]) for name in ("text", document_reading.UNJUDGED)}
        times = document_reading.in_rounds(works, 3, random.Random(1))  # noqa: S311 - an order
        assert done == {"text": runs, document_reading.UNJUDGED: 1}
        assert {name: len(each) for name, each in times.items()} == done
