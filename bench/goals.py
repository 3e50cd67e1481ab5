"""How a benchmark tells which of its goals are met."""

from collections.abc import Iterable, Mapping
from typing import Any


def show_goals(goals: Iterable[Mapping[str, Any]]) -> None:
    """Print each goal beside what was measured: `what`, `result`, `goal` and `met`."""
    for goal in goals:
        print(
            f"{'met   ' if goal['met'] else 'MISSED'} {goal['what']}: {goal['result']} (goal {goal['goal']})"
        )
