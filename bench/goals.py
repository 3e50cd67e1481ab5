"""How a benchmark tells which of its goals are met."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def show_goals(goals: Iterable[Mapping[str, Any]]) -> None:
    """Print each goal beside what was measured: `what`, `result`, `goal` and `met`."""
    for goal in goals:
        print(
            f"{'met   ' if goal['met'] else 'MISSED'} {goal['what']}: {goal['result']} (goal {goal['goal']})"
        )


def run_bench(
    description: str | None,
    bench: Callable[..., dict[str, Any]],
    show: Callable[[dict[str, Any]], None],
    *,
    quick: str,
    seed: str,
) -> int:
    """Do `bench(quick=…, seed=…)` as the command line says, and print what it measured.

    Args:
        quick, seed: what these options say of themselves.
    Returns:
        the exit status: 1 where a goal is missed.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--seed", type=int, default=1, help=seed)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    result = bench(quick=options.quick, seed=options.seed)
    print(json.dumps(result)) if options.json else show(result)
    return 0 if all(goal["met"] for goal in result["goals"]) else 1
