"""Figures of a search's quality, with intervals."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DEPTH = 10
RESAMPLES = 1000


@dataclass(frozen=True)
class Outcome:
    """What came of a question: for each of its quotes the rank of the first passage that holds it."""

    text: str
    kind: str
    ranks: list[int | None]


Measure = Callable[[Outcome], float]


def recall(depth: int) -> Measure:
    """The share of a question's quotes that are among the first `depth` passages."""

    def measure(outcome: Outcome) -> float:
        return sum(rank is not None and rank <= depth for rank in outcome.ranks) / len(outcome.ranks)

    return measure


def reciprocal_rank(outcome: Outcome) -> float:
    """1 / the rank of the first right passage; 0 if it is not among the first ten."""
    ranks = [rank for rank in outcome.ranks if rank is not None and rank <= DEPTH]
    return 1 / min(ranks) if ranks else 0.0


MEASURES: dict[str, Measure] = {
    "recall@1": recall(1),
    "recall@5": recall(5),
    "recall@10": recall(10),
    "MRR@10": reciprocal_rank,
}


def mean(outcomes: Sequence[Outcome], measure: Measure) -> float:
    return sum(map(measure, outcomes)) / len(outcomes)


def interval(outcomes: Sequence[Outcome], measure: Measure, seed: int) -> tuple[float, float]:
    """Where 95 of 100 means lie. Texts are drawn again, not questions: those of one text are alike."""
    by_text: dict[str, list[float]] = {}
    for outcome in outcomes:
        by_text.setdefault(outcome.text, []).append(measure(outcome))
    texts = sorted(by_text)
    chance = random.Random(seed)  # noqa: S311 - the same at every run
    means = []
    for _ in range(RESAMPLES):
        drawn = [value for text in chance.choices(texts, k=len(texts)) for value in by_text[text]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
