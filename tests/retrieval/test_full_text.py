"""Words of several languages, found in the passages that have them."""

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.languages import SIMPLE, UNSPACED_CHARACTER
from db.models import Collection
from db.queries.collections import create_collection
from db.queries.languages import known_language, text_search_configurations
from retrieval.full_text import FullText, Word, query_words
from tests.retrieval.test_search import load

ENGLISH = ["The runners were running home.", "A file of the system.", "Every file of the system is a file."]


@pytest.fixture
def collection(session: Session) -> Collection:
    return create_collection(session, project_id="default", name="c")


@pytest.fixture
def fill(session: Session, collection: Collection, tmp_path: Path) -> "Fill":
    return Fill(session, collection, tmp_path)


class Fill:
    def __init__(self, session: Session, collection: Collection, folder: Path) -> None:
        self._session, self._collection, self._folder = session, collection, folder

    def __call__(self, configuration: str, passages: list[str]) -> None:
        document = load(
            self._session,
            self._folder,
            self._collection,
            configuration,
            passages,
            configuration=configuration,
        )
        document.language = document.configuration = configuration
        document.chunk_count = len(passages)
        self._session.flush()

    def find(self, query: str, **options: int) -> list[str]:
        return self.search(query, **options)[0]

    def search(self, query: str, **options: int) -> tuple[list[str], bool]:
        words = FullText(
            self._session,
            project_id="default",
            collections=[self._collection],
            where=None,
            most=10,
            **options,
        )
        found = words.matching(query)
        texts = text("SELECT id, text FROM chunks WHERE id = ANY (:ids)")
        by_id = dict(self._session.execute(texts, {"ids": found}).all())
        return [by_id[chunk_id] for chunk_id in found], words.is_bounded


class TestLanguages:
    def test_each_is_stemmed_as_its_own(self, fill: Fill) -> None:
        german = "Die Häuser stehen am Fluss."
        fill("english", ENGLISH)
        fill("german", [german, "Ein Baum."])
        assert fill.find("a runner runs") == ENGLISH[:1]
        assert fill.find("welches Haus") == [german]
        assert set(fill.find("runs Haus")) == {ENGLISH[0], german}

    @pytest.mark.parametrize(
        ("passage", "query"),
        [
            ("私は東京タワーに行きました。", "東京タワー"),
            ("机器学习是人工智能的一个分支。", "学习"),
            ("机器学习是人工智能的一个分支。", "智"),
            ("ภาษาไทยไม่มีช่องว่างระหว่างคำ", "ช่องว่าง"),
            ("한국어 문장입니다", "문장"),
            ("קבוצת המבחן נמצאת כאן", "המבחן"),
        ],
    )
    def test_without_spaces_or_from_right_to_left(self, fill: Fill, passage: str, query: str) -> None:
        fill(SIMPLE, [passage, "something else", "日本橋", "בית"])
        assert fill.find(query) == [passage]

    def test_arabic_is_stemmed(self, fill: Fill) -> None:
        passage = "الطلاب يقرؤون الكتب في المكتبات الكبيرة"
        fill("arabic", [passage, "السماء زرقاء"])
        assert fill.find("مكتبة") == [passage]

    def test_pairs_are_those_of_the_database(self, session: Session) -> None:
        codes = [97, 1488, 3585, 3713, 4096, 6016, 12353, 12449, 13312, 19968, 44032, 65382, 131072]
        paired = text("SELECT c, length(chunk_words('simple', repeat(chr(c), 3))) > 1 FROM unnest(:codes) c")
        assert dict(session.execute(paired, {"codes": codes}).all()) == {
            code: UNSPACED_CHARACTER.fullmatch(chr(code)) is not None for code in codes
        }


class TestRanking:
    def test_rare_words_count_more_than_common_ones(self, fill: Fill) -> None:
        fill("english", ["file system"] * 20 + ["the zebra sleeps"])
        assert fill.find("zebra or file")[0] == "the zebra sleeps"

    def test_repeated_words_count_more(self, fill: Fill) -> None:
        fill("english", ["A file is kept here, and other things.", "A file is a file is a file.", "Trees."])
        assert fill.find("file")[0] == "A file is a file is a file."

    def test_words_that_too_many_have_are_looked_for_together(self, fill: Fill) -> None:
        fill("english", ["alpha"] * 9 + ["beta"] * 9 + ["alpha beta", "gamma"])
        found, is_bounded = fill.search("alpha beta gamma", ranked_most=5)
        assert (found, is_bounded) == (["gamma", "alpha beta"], True)
        assert fill.search("gamma", ranked_most=5) == (["gamma"], False)

    def test_what_a_query_may_hold(self, fill: Fill) -> None:
        fill("english", ["it's a\\b 'quoted' & | ! :* text"])
        for query in ("", "?!", "'", "\\", "it's & | ! :* (a\\b)", "the of and", "quoted " * 500):
            fill.find(query)
        assert fill.find("'quoted'") != []


def test_a_single_character_is_the_beginning_of_a_pair_only_if_it_stands_alone() -> None:
    assert list(query_words(["東京", "京"])) == [Word("東京", False)]
    assert list(query_words(["水", "a", "。"])) == [Word("水", True), Word("a", False)]


def test_a_language_is_given_by_name_or_code(session: Session) -> None:
    assert known_language(session, "de") == known_language(session, "German") == "german"
    assert known_language(session, "zh") == "chinese"
    with pytest.raises(InvalidInput, match=r"'klingon'.*english.*simple") as refused:
        known_language(session, "klingon")
    assert refused.value.param == "language"


def test_an_operators_own_configuration_is_known(session: Session) -> None:
    session.execute(text("CREATE TEXT SEARCH CONFIGURATION polish (COPY = simple)"))
    assert "polish" in text_search_configurations(session)
    assert known_language(session, "pl") == "polish"
