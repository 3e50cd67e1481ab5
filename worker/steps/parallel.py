"""How several processes train together: a copy of the weights in each, by DDP or by DeepSpeed."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from worker.step import Step
from worker.steps.division import Division
from worker.steps.tunings import BASE_SHARE, WHOLE_BYTES, WHOLE_SHARE, memory_bytes, settle_bits

BASE_BYTES = {4: 0.55, 8: 1.05, 16: 2.0}  # a parameter, with what quantising keeps beside it


def settle_parallel(step: Step, folder: Path, chosen: dict[str, Any], division: Division) -> Division:
    """Settle the bits of the base by the memory of one device, and see whether a copy has room there.

    Returns:
        the division; among one, where it has none: its layers are then spread over all GPUs.
    """
    if step.input.cluster is not None:  # whose workers know their devices
        return replace(division, parallel="ddp") if division.ranks > 1 else division
    require_deepspeed(step)
    parallel = "ddp" if step.input.deepspeed is None else "deepspeed"
    if division.ranks > 1 and _has_room(step, folder, chosen, division.ranks):
        settle_bits(step, folder, chosen, copies=division.ranks)
        by = "DDP" if parallel == "ddp" else f"DeepSpeed, {step.input.params['deepspeed']}"
        step.event(f"Each of them has a copy of the weights ({by}).", parallel=parallel)
        return replace(division, parallel=parallel)
    if parallel == "deepspeed":
        step.event("One process trains: DeepSpeed has no part in it.", level="warn")
    settle_bits(step, folder, chosen)
    return Division(1, chosen["batch_size"], chosen["gradient_accumulation_steps"])


def _has_room(step: Step, folder: Path, chosen: dict[str, Any], copies: int) -> bool:
    """Whether each device has room for a copy, and for what training needs beside it; else that is told."""
    import torch

    from worker.steps.base_model import count_parameters

    if not torch.cuda.is_available():
        return True
    bits = 4 if chosen["bits"] == "auto" else chosen["bits"]
    each = WHOLE_BYTES / WHOLE_SHARE if chosen["tuning"] == "full" else BASE_BYTES.get(bits, 2.0) / BASE_SHARE
    needed, there = each * count_parameters(folder), memory_bytes(copies)
    if needed > there:
        step.event(
            f"A copy of the weights for each GPU needs {needed / 1e9:.1f} GB, and the smallest has "
            f"{there / 1e9:.1f} GB: one process trains, with the layers spread over all of them.",
            level="warn",
        )
    return needed <= there


def see_that_it_can_go_on(step: Step, state: dict[str, Any], division: Division) -> None:
    """Hold a checkpoint's state against the processes that are to go on with it.

    Raises:
        InvalidInput: they cannot: what DeepSpeed keeps is cut for as many as wrote it.
    """
    before = (state.get("ranks", 1), state.get("parallel"))
    now = (division.ranks, division.parallel)
    if before == now:
        return
    written = f"by {before[0]} process{'es' * (before[0] != 1)}{f' ({before[1]})' if before[1] else ''}"
    if "deepspeed" in (before[1], now[1]):
        raise InvalidInput(
            f"The newest checkpoint was written {written}, and DeepSpeed goes on only as it began: retry "
            f"where {before[0]} GPUs can train, or submit the job anew.",
            param="deepspeed",
        )
    step.event(f"The checkpoint was written {written}: dropout draws other numbers than it would have.")


def require_deepspeed(step: Step) -> None:
    """Raises:
    InvalidInput: the job wants it, and it is not installed.
    """
    if step.input.deepspeed is not None and importlib.util.find_spec("deepspeed") is None:
        raise InvalidInput(
            "DeepSpeed is not installed where the worker runs: pip install 'lathe[deepspeed]', or leave "
            "deepspeed out.",
            param="deepspeed",
        )
