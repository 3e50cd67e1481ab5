"""What the benchmarks of training reckon with: lengths of rows, sizes of models, and when a goal is met."""

from statistics import median, quantiles
from typing import Any

import pytest

from bench.gpu.shapes import SHAPES, lora_mfu, matrix_parameters
from bench.training import goals
from bench.training_rows import MEDIAN, P99
from bench.training_rows import quantiles as lengths


class TestRows:
    def test_have_the_lengths_that_are_said(self) -> None:
        found = lengths(2000, MEDIAN, P99)
        assert median(found) == pytest.approx(MEDIAN, abs=1)
        assert quantiles(found, n=100)[98] == pytest.approx(P99, rel=0.03)

    def test_are_spread_alike_when_they_are_few(self) -> None:
        assert sum(lengths(48, MEDIAN, P99)) / 48 == pytest.approx(
            sum(lengths(2000, MEDIAN, P99)) / 2000, rel=0.1
        )


class TestShapes:
    def test_count_what_every_token_is_multiplied_with(self) -> None:
        # Llama 3.1 8B has 8,030,261,248 weights; its embedding of 128,256 × 4,096 is looked up.
        assert matrix_parameters(SHAPES["8B"]) == pytest.approx(8_030_261_248 - 128_256 * 4096, rel=1e-4)
        # Llama 3.2 1B ties its embedding to the output layer, so that it is multiplied with.
        assert matrix_parameters(SHAPES["1B"]) == pytest.approx(1_235_814_400, rel=1e-3)

    def test_need_four_operations_for_a_weight_and_token(self) -> None:
        """8 B at 790 TFLOP/s are 24.8 k tokens a second at most, by the weights of all of it."""
        assert lora_mfu(SHAPES["8B"], 24_800, 790) == pytest.approx(0.94, abs=0.02)


class TestGoals:
    PAIRS: dict[str, Any] = {"ratios": [1.0, 1.2, 1.01]}  # noqa: RUF012

    def way(self, cost: float, loss: float, steps: int = 4) -> dict[str, Any]:
        return {"cpu_seconds_a_thousand": cost, "eval_loss": loss, "steps": steps, "tokens": 100 * steps}

    def met(self, chosen: dict[str, Any]) -> list[bool]:
        ways = {"padded": self.way(5.0, 6.0), "as Lathe chooses": chosen}
        return [goal["met"] for goal in goals(self.PAIRS, ways)]

    def test_are_met_by_the_middle_pair_and_the_same_loss(self) -> None:
        assert self.met(self.way(2.5, 6.0)) == [True, True, True]

    def test_are_missed_by_what_costs_more_or_learns_less(self) -> None:
        assert self.met(self.way(3.0, 6.2)) == [True, False, False]

    def test_are_missed_by_fewer_steps(self) -> None:
        assert self.met(self.way(2.5, 6.0, steps=3)) == [True, True, False]
