"""Which rows are trained on, and which are held out."""

import random
from dataclasses import dataclass

from db.errors import InvalidInput


@dataclass(frozen=True)
class Split:
    """Indices of rows, each list in the file's order."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_rows(rows: int, train_size: float | None, seed: int) -> Split:
    """Draw a split; what is not trained on is halved, validation taking the odd row.

    Args:
        rows: how many there are.
        train_size: share of rows to train on; None or 1.0: all.
        seed: of the draw; the same seed and count give the same split.

    Raises:
        InvalidInput: there are too few rows to hold any out.
    """
    if train_size is None or train_size >= 1:
        return Split(list(range(rows)), [], [])
    if rows < 2:
        raise InvalidInput(
            f"train_size {train_size} holds rows out, and there is only {rows}.", param="train_size"
        )
    train = min(rows - 1, max(1, round(rows * train_size)))
    order = list(range(rows))
    random.Random(seed).shuffle(order)  # noqa: S311 - reproducible, not secret
    held_out = order[train:]
    middle = (len(held_out) + 1) // 2
    return Split(sorted(order[:train]), sorted(held_out[:middle]), sorted(held_out[middle:]))
