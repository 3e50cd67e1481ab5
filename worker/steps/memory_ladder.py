"""What a training does with less when memory has run out: what costs only time first, then bits.

The order is that in which an estimate makes a training fit (`training_data.fitting`): a smaller micro-batch
of the same effective batch, a shorter pack, checkpointing, and last a base of 4 bits, where these were
`auto`.
"""

import math
from collections.abc import Mapping
from typing import Any

from training_data.division import Division
from training_data.hyperparameters import LEAST_BATCHES
from training_data.presets import AUTO
from worker.step import Step

LEAST_ADVICE = (
    "The fewest rows at a time are too many: lower max_length, set gradient_checkpointing to true, or bits "
    "to 4."
)


def announce(step: Step, chosen: Mapping[str, Any], division: Division) -> str:
    """Say beforehand what a next attempt does with less memory.

    Returns:
        the advice for whom nothing is left; empty: something is.
    """
    prepared = step.input.results["prepare"]["hyperparameters"]
    must_be_shares = step.input.params.get("sharding") == "full"  # which DoRA has in 16 bits alone
    free = {
        name
        for name, given in (
            ("gradient_checkpointing", step.input.params.get("gradient_checkpointing", AUTO)),
            ("bits", prepared.get("bits") if not must_be_shares or not chosen.get("use_dora") else 16),
        )
        if given == AUTO
    }
    less = with_less(
        {
            **chosen,
            "batch_size": division.batch_size,
            "gradient_accumulation_steps": division.accumulation * division.ranks,
        },
        free,
    )
    # What an earlier attempt has lowered stays so.
    step.if_memory_runs_out(None if less is None else {**step.input.adjustments, **less}, LEAST_ADVICE)
    return LEAST_ADVICE if less is None else ""


def with_less(chosen: Mapping[str, Any], free: set[str]) -> dict[str, int] | None:
    """The next rung: what to change of `chosen`; None below the last.

    Args:
        free: what was `auto`, and may be changed.
    """
    least = LEAST_BATCHES.get(chosen["method"], 1)
    smaller = halved(chosen["batch_size"], chosen["gradient_accumulation_steps"], least)
    if smaller is not None:
        return smaller
    if chosen.get("packed_length", 0) > chosen.get("longest_row", math.inf):
        return {"packed_length": max(chosen["longest_row"], chosen["packed_length"] // 2)}
    if chosen.get("selective_checkpointing") or (
        "gradient_checkpointing" in free and not chosen["gradient_checkpointing"]
    ):
        return {"gradient_checkpointing": True, "selective_checkpointing": False}
    if "bits" in free and chosen["bits"] > 4:
        return {"bits": 4}
    return None


def halved(batch: int, accumulation: int, least: int = 1) -> dict[str, int] | None:
    """A micro-batch at most half as large that makes the same effective batch; None below `least` rows."""
    effective = batch * accumulation
    smaller = next((rows for rows in range(batch // 2, least - 1, -1) if effective % rows == 0), None)
    if smaller is None:
        return None
    return {"batch_size": smaller, "gradient_accumulation_steps": effective // smaller}
