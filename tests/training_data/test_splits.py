import pytest

from db.errors import InvalidInput
from training_data.splits import split_rows


class TestSplitRows:
    def test_halves_what_is_held_out(self):
        split = split_rows(20, 0.7, seed=1)
        assert (len(split.train), len(split.validation), len(split.test)) == (14, 3, 3)
        assert sorted(split.train + split.validation + split.test) == list(range(20))

    def test_gives_the_odd_row_to_validation(self):
        split = split_rows(10, 0.9, seed=1)
        assert (len(split.train), len(split.validation), len(split.test)) == (9, 1, 0)

    def test_is_the_same_for_the_same_seed(self):
        assert split_rows(50, 0.8, seed=7) == split_rows(50, 0.8, seed=7)
        assert split_rows(50, 0.8, seed=7) != split_rows(50, 0.8, seed=8)

    @pytest.mark.parametrize("train_size", [None, 1.0])
    def test_trains_on_every_row_unless_asked(self, train_size):
        assert split_rows(3, train_size, seed=1).train == [0, 1, 2]

    def test_keeps_a_row_on_each_side(self):
        assert [len(split_rows(2, size, seed=1).train) for size in (0.01, 0.99)] == [1, 1]

    def test_refuses_to_hold_out_the_only_row(self):
        with pytest.raises(InvalidInput, match="only 1"):
            split_rows(1, 0.5, seed=1)
