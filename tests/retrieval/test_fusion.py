"""Reciprocal rank fusion."""

import pytest

from retrieval.fusion import RANK_CONSTANT, fuse


class TestFuse:
    def test_first_in_every_list_is_one(self) -> None:
        scores = fuse([(1.0, [1, 2]), (1.0, [1, 3])])
        assert scores[1] == pytest.approx(1.0)
        assert scores[2] == scores[3] == pytest.approx((RANK_CONSTANT + 1) / (RANK_CONSTANT + 2) / 2)

    def test_weights_count(self) -> None:
        scores = fuse([(3.0, [1]), (1.0, [2])])
        assert scores[1] == pytest.approx(3 * scores[2])

    def test_first_in_one_list_comes_before_low_in_both(self) -> None:
        low = list(range(100, 119))
        scores = fuse([(1.0, [1, *low, 2]), (1.0, [*low, 3, 2])])
        assert scores[1] > scores[2]
