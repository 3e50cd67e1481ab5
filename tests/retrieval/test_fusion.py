"""Reciprocal rank fusion."""

import pytest

from retrieval.fusion import fuse


class TestFuse:
    def test_first_in_every_list_is_one(self) -> None:
        scores = fuse([(1.0, [1, 2]), (1.0, [1, 3])])
        assert scores[1] == pytest.approx(1.0)
        assert scores[2] == scores[3] == pytest.approx(61 / 62 / 2)

    def test_weights_count(self) -> None:
        scores = fuse([(3.0, [1]), (1.0, [2])])
        assert scores[1] == pytest.approx(3 * scores[2])
