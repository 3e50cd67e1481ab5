"""However many processes train, a step of the optimiser has as many rows as the job asked for."""

import pytest

from training_data.division import Division, divide


class TestDivide:
    def test_keeps_the_effective_batch(self):
        for batch in range(1, 17):
            for accumulation in range(1, 9):
                for ranks in range(1, 9):
                    division = divide(batch, accumulation, ranks)
                    assert division.effective_batch == batch * accumulation
                    assert division.batch_size <= batch
                    assert division.ranks <= ranks

    def test_one_process_trains_as_it_was_asked(self):
        assert divide(6, 3, 1) == Division(1, 6, 3)

    @pytest.mark.parametrize(
        ("asked", "divided"),
        [
            ((4, 2, 2), Division(2, 4, 1)),  # as many rows at a time, accumulated less often
            ((8, 1, 4), Division(4, 2, 1)),
            ((6, 1, 4), Division(3, 2, 1)),  # not by four
            ((3, 3, 2), Division(1, 3, 3)),
            ((1, 8, 4), Division(4, 1, 2)),
        ],
    )
    def test_gives_each_the_same(self, asked, divided):
        assert divide(*asked) == divided

    def test_leaves_each_as_many_rows_as_its_method_needs(self):
        assert divide(2, 1, 2, least=2) == Division(1, 2, 1)
        assert divide(4, 1, 4, least=2) == Division(2, 2, 1)
