"""How several processes train together: a copy of the weights in each, by DDP or by DeepSpeed, or a share of
them in each, by FSDP.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.params.sharding import why_not_sharded
from training_data.division import Division
from training_data.placement import bits_of_shares, bytes_of_a_copy, bytes_of_a_share
from worker.step import Step
from worker.steps.compiled_extensions import compiled_extensions, has_compiled
from worker.steps.gptq import stored_config
from worker.steps.stacking import started_adapter
from worker.steps.tunings import memory_bytes, settle_bits


def settle_parallel(step: Step, folder: Path, chosen: dict[str, Any], division: Division) -> Division:
    """Settle the bits of the base by the memory of one device, and see what of it has room there.

    Returns:
        the division; among one, where neither a copy nor a share has room: the base's layers are then spread
        over all GPUs.
    Raises:
        InvalidInput: the weights were to be divided, and cannot be.
    """
    if step.input.cluster is not None:  # whose workers know their devices
        return replace(division, parallel="ddp") if division.ranks > 1 else division
    require_deepspeed(step)
    alone = Division(1, chosen["batch_size"], chosen["gradient_accumulation_steps"])
    if division.ranks == 1:
        _tell_of_no_use(step)
        settle_bits(step, folder, chosen)
        return alone
    parallel = _parallel(step, folder, chosen, division.ranks)
    if parallel is None:
        settle_bits(step, folder, chosen)
        return alone
    if parallel == "fsdp":
        _tell_shares(step, folder, chosen, division.ranks)
    else:
        settle_bits(step, folder, chosen, copies=division.ranks)
        by = "DDP" if parallel == "ddp" else f"DeepSpeed, {step.input.params['deepspeed']}"
        step.event(f"Each of them has a copy of the weights ({by}).", parallel=parallel)
    return replace(division, parallel=parallel)


def _parallel(step: Step, folder: Path, chosen: dict[str, Any], ranks: int) -> str | None:
    """By what they train together; None: no GPU has room, and one process is to use them all."""
    from worker.steps.base_model import count_parameters

    require_shares(step, folder, chosen)
    wanted = step.input.params.get("sharding", "auto")
    if wanted == "full":
        return "fsdp"
    parameters, there = count_parameters(folder), _room(ranks)
    copy = bytes_of_a_copy(parameters, chosen)
    if copy <= there:
        return "ddp" if step.input.deepspeed is None else "deepspeed"
    no_room = (
        f"A copy of the weights for each GPU needs {copy / 1e9:.1f} GB, and the smallest has "
        f"{there / 1e9:.1f} GB"
    )
    bits = bits_of_shares(parameters, chosen, ranks, there)
    reason = _why_not_shares(step, folder, {**chosen, "bits": bits})
    share = bytes_of_a_share(parameters, chosen, ranks, bits)
    if wanted == "none":
        reason = 'sharding is "none"'
    elif step.input.deepspeed is not None:
        reason = "DeepSpeed has no part in that"
    elif reason is None and share > there:
        reason = f"a share takes {share / 1e9:.1f} GB"
    if reason is None:
        step.event(f"{no_room}: the weights are divided among them.")
        return "fsdp"
    step.event(
        f"{no_room}; they are not divided, for {reason}: one process trains, with the layers spread over all "
        "of them.",
        level="warn",
    )
    return None


def require_shares(step: Step, folder: Path, chosen: dict[str, Any]) -> None:
    """Raises:
    InvalidInput: the job wants the weights divided, and they cannot be.
    """
    reason = _why_not_shares(step, folder, chosen)
    if step.input.params.get("sharding") == "full" and reason is not None:
        raise InvalidInput(
            f'The weights cannot be divided among GPUs: {reason}. Set sharding to "auto".', param="sharding"
        )


def _why_not_shares(step: Step, folder: Path, chosen: dict[str, Any]) -> str | None:
    """What is in the way of weights that are divided."""
    asked = why_not_sharded({**step.input.params, **chosen})
    if asked is not None:
        return asked[1]
    if stored_config(folder) is not None:
        return "the base is stored quantised"
    if started_adapter(step) is not None and chosen["tuning"] == "full":
        return "an adapter is merged into them first"
    if started_adapter(step) is not None and chosen["use_dora"]:
        return "an adapter of DoRA that is there already is put beside whole matrices"
    return None


def _tell_shares(step: Step, folder: Path, chosen: dict[str, Any], ranks: int) -> None:
    from worker.steps.base_model import count_parameters

    chosen["bits"] = bits_of_shares(count_parameters(folder), chosen, ranks, _room(ranks))
    step.event(
        f"Each of them has a share of every layer's weights, 1 of {ranks}, in {chosen['bits']} bits (FSDP)."
        if chosen["tuning"] == "lora"
        else f"Each of them has a share of all weights, and of what trains them, 1 of {ranks} (FSDP).",
        parallel="fsdp",
        bits=chosen["bits"],
    )


def _tell_of_no_use(step: Step) -> None:
    """Say of one process that it makes nothing of what is there for several."""
    if step.input.deepspeed is not None:
        step.event("One process trains: DeepSpeed has no part in it.", level="warn")
    if step.input.params.get("sharding") == "full":
        step.event("One process trains: it has all the weights, and none are divided.", level="warn")


def _room(ranks: int) -> float:
    """Bytes of the smallest GPU; without one, all has room that is tried."""
    import torch

    return float(memory_bytes(ranks)) if torch.cuda.is_available() else float("inf")


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
            "DeepSpeed is not installed where the worker runs: `.venv/bin/pip install -e "
            "'.[deepspeed]'`, or leave deepspeed out.",
            param="deepspeed",
        )


@contextmanager
def rank_environment(step: Step, division: Division) -> Iterator[dict[str, str]]:
    """What ranks are told by their environment: where DeepSpeed finds what it compiles as it begins."""
    if division.parallel != "deepspeed":
        yield {}
        return
    import torch

    folder = (
        step.input.settings.cache_dir / f"{sys.implementation.cache_tag}-torch-{torch.__version__}-extensions"
    )
    if not torch.cuda.is_available() and not has_compiled(folder):
        step.event("DeepSpeed compiles what it needs for this machine's CPU, once, which may take minutes.")
    with compiled_extensions(folder) as environment:
        yield environment
