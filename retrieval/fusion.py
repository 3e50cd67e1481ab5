"""Several rankings of the same things made into one."""

from collections.abc import Sequence

# Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion", have 60, for many long lists. Of two lists that
# is too flat: what is low in both comes before what is first in one. Measured in docs/experiments.md.
RANK_CONSTANT = 10


def fuse(lists: Sequence[tuple[float, Sequence[int]]]) -> dict[int, float]:
    """Reciprocal rank fusion.

    Args:
        lists: each with its weight, the best first.
    Returns:
        for each entry its score; 1 is first in every list.
    """
    best = sum(weight for weight, _ in lists) / (RANK_CONSTANT + 1)
    scores: dict[int, float] = {}
    for weight, entries in lists:
        for rank, entry in enumerate(entries, 1):
            scores[entry] = scores.get(entry, 0.0) + weight / (RANK_CONSTANT + rank) / best
    # The same ranks in other lists are to be equal, in whatever order they were added up.
    return {entry: round(score, 9) for entry, score in scores.items()}
