"""Maximal marginal relevance, against its formula done by hand."""

import random
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.models import Chunk
from db.queries.collections import create_collection
from retrieval.diversity import Closeness, closeness, pick
from retrieval.search import Query, Ranking, search
from tests.embedding_server import embed
from tests.retrieval.test_search import load


def slowly(relevance: list[float], close: list[list[float]], limit: int, diversity: float) -> list[int]:
    """Carbonell and Goldstein's formula, with lambda = 1 - diversity."""
    rest, picked = list(range(len(relevance))), list[int]()
    while rest and len(picked) < limit:
        marginal = [
            (1 - diversity) * relevance[one] - diversity * max((close[one][two] for two in picked), default=0)
            for one in rest
        ]
        picked.append(rest.pop(marginal.index(max(marginal))))
    return picked


class TestPick:
    @pytest.mark.parametrize("diversity", [0.0, 0.3, 0.5, 0.9, 1.0])
    def test_is_the_formula(self, diversity: float) -> None:
        chance = random.Random(5)  # noqa: S311 - the same at every run
        number = 30
        relevance = sorted((chance.random() for _ in range(number)), reverse=True)
        close = [[0.0] * number for _ in range(number)]
        table: Closeness = {}
        for one in range(number):
            for two in range(one):
                close[one][two] = close[two][one] = table[two, one] = chance.random()
        ranked = list(enumerate(relevance))
        assert pick(ranked, table, 10, diversity) == slowly(relevance, close, 10, diversity)

    def test_a_copy_comes_after_what_is_new(self) -> None:
        ranked = [(1, 0.9), (2, 0.9), (3, 0.6)]
        close = {(1, 2): 1.0, (1, 3): 0.1, (2, 3): 0.1}
        assert pick(ranked, close, 3, 0.0) == [1, 2, 3]
        assert pick(ranked, close, 3, 0.5) == [1, 3, 2]


class TestCloseness:
    def test_is_the_cosine_of_each_two(self, session: Session, tmp_path: Path) -> None:
        collection = create_collection(session, project_id="default", name="c")
        load(session, tmp_path, collection, "d", ["red fox", "red fox hunts", "tax", "..."])
        ids = list(session.scalars(select(Chunk.id).order_by(Chunk.position)))
        found = closeness(session, ids)
        # Half precision keeps eleven bits of each number.
        assert found[ids[0], ids[1]] == pytest.approx((2 / 3) ** 0.5, abs=2e-3)
        assert len(found) == 6
        # What has no words has no direction.
        assert found[ids[0], ids[3]] == 0.0


class TestSearch:
    def test_what_says_the_same_comes_later(self, session: Session, tmp_path: Path) -> None:
        collection = create_collection(session, project_id="default", name="c")
        load(session, tmp_path, collection, "d", ["red fox", "red fox", "quick fox"])

        def found(diversity: float) -> list[str]:
            hits = search(
                session, project_id="default", collections=[collection], limit=2,
                queries=[Query("red fox", embed("red fox"))], ranking=Ranking(diversity=diversity),
            ).hits  # fmt: skip
            return [hit.chunk.text for hit in hits]

        assert found(0.0) == ["red fox", "red fox"]
        assert found(0.7) == ["red fox", "quick fox"]
