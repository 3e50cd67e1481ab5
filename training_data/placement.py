"""How a training is spread over what a machine has: by a copy of the weights in each process, a share of them
in each, or one process whose layers lie on all GPUs. Before it starts it is reckoned as it is then done.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from db.params.sharding import why_not_sharded
from training_data.division import Division, divide
from training_data.hyperparameters import LEAST_BATCHES
from training_data.machines import Machine
from training_data.presets import AUTO

# Of the memory that there is, not of what is free: an attempt that goes on must choose as the first one did.
BASE_SHARE = 0.4  # for the weights that an adapter is trained on: the rest is for what is computed from them
WHOLE_SHARE = 0.7  # for all that training each weight takes
WHOLE_BYTES = 16  # a parameter: it, its gradient and Adam's two moments, each in float32
LEAST_WHOLE_BYTES = 8  # the same in 16 bits
BASE_BYTES = {4: 0.55, 8: 1.05, 16: 2.0}  # a parameter, with what quantising keeps beside it
# How much of what each further GPU could add is left once gradients, or weights as well, are sent about. A
# guess, until a job has finished on as many.
WORTH = {"ddp": 0.9, "deepspeed": 0.9, "fsdp": 0.75}


def bytes_of_a_copy(parameters: int, chosen: Mapping[str, Any]) -> float:
    """What a device must have for a copy of the weights, and for what training needs beside it."""
    bits = 4 if chosen["bits"] == AUTO else int(chosen["bits"])
    full = chosen.get("tuning", "lora") == "full"
    return parameters * (WHOLE_BYTES / WHOLE_SHARE if full else BASE_BYTES[bits] / BASE_SHARE)


def bytes_of_a_share(parameters: int, chosen: Mapping[str, Any], ranks: int, bits: int) -> float:
    """What each device must have for its share: of the rest of the weights, one layer at a time is whole.

    Args:
        bits: of the weights that an adapter is trained on.
    """
    full = chosen.get("tuning", "lora") == "full"
    return parameters * (LEAST_WHOLE_BYTES if full else BASE_BYTES[bits]) / WHOLE_SHARE / ranks


def bits_of_shares(parameters: int, chosen: Mapping[str, Any], ranks: int, there: float) -> int:
    """In what the weights are divided: of `auto`, in 16 bits where a share of these has room, else in 4.

    Args:
        there: bytes of the smallest device.
    """
    if chosen["bits"] != AUTO:
        return int(chosen["bits"])
    return 16 if bytes_of_a_share(parameters, chosen, ranks, 16) <= there else 4


@dataclass(frozen=True)
class Placement:
    """Args:
    division: among its processes.
    devices: GPUs that it uses; 0: it trains on the CPU.
    """

    division: Division
    devices: int = 0

    @property
    def spread(self) -> int:
        """Among how many GPUs the layers of one process lie."""
        return max(1, self.devices) if self.division.ranks == 1 else 1

    @property
    def gain(self) -> float:
        """How many times as fast as one GPU it is. Processes on a CPU share what one would have."""
        return gain(self.division.ranks if self.devices else 1, self.division.parallel)


def gain(processes: int, parallel: str | None) -> float:
    """How many times as fast as one GPU so many are."""
    return 1 + (processes - 1) * WORTH.get(parallel or "", 0.0)


@dataclass(frozen=True)
class Placing:
    """What decides how a training is spread.

    Args:
        params: the job's, `sharding` among them, as far as hyperparameters do not say otherwise.
        processes: that train together where there is no GPU.
        deepspeed: whether the job names a configuration of it.
        divisible: whether nothing of the base itself stands in the way of shares.
    """

    params: Mapping[str, Any]
    processes: int = 1
    deepspeed: bool = False
    divisible: bool = True

    def on(
        self, machine: Machine, chosen: Mapping[str, Any], parameters: int
    ) -> tuple[Placement, dict[str, Any]]:
        """How it is spread there, and what of the hyperparameters follows: bits that are left to `auto`, and
        in what weights are learnt.

        Args:
            chosen: with `bits` as settled for one device, and `auto_bits`: those, where `auto` chose them.
        """
        devices = machine.devices or 1 if machine.device is not None else 0
        possible = devices or self.processes
        batch, accumulation = int(chosen["batch_size"]), int(chosen["gradient_accumulation_steps"])
        least = LEAST_BATCHES.get(chosen.get("method", ""), 1)
        division = divide(batch, accumulation, possible, least=least)
        there = machine.device_bytes if devices and machine.device_bytes else math.inf
        parallel = self._parallel(division.ranks, chosen, parameters, there) if division.ranks > 1 else None
        if parallel is None:
            placement = Placement(Division(1, batch, accumulation), devices)
        else:
            placement = Placement(replace(division, parallel=parallel), devices)
        return placement, self._settled(placement, chosen, parameters, there)

    def _parallel(self, ranks: int, chosen: Mapping[str, Any], parameters: int, there: float) -> str | None:
        asked = _asked(chosen)
        sharding = self.params.get("sharding", AUTO)
        if sharding == "full":
            return "fsdp"
        if bytes_of_a_copy(parameters, asked) <= there:
            return "deepspeed" if self.deepspeed else "ddp"
        bits = bits_of_shares(parameters, asked, ranks, there)
        may_share = sharding == AUTO and self.divisible and not self.deepspeed
        if may_share and why_not_sharded({**self.params, **asked, "bits": bits}) is None:
            return "fsdp" if bytes_of_a_share(parameters, asked, ranks, bits) <= there else None
        return None

    def _settled(
        self, placement: Placement, chosen: Mapping[str, Any], parameters: int, there: float
    ) -> dict[str, Any]:
        division, found = placement.division, {}
        shares = division.ranks if division.sharded else 1
        room = there * placement.spread
        if _is_auto(chosen) and placement.devices > 1:
            copied = 16 if 2 * parameters <= BASE_SHARE * room else 4
            found["bits"] = (
                bits_of_shares(parameters, _asked(chosen), shares, there) if division.sharded else copied
            )
        if placement.devices > 1 and chosen.get("learnt_in_bytes"):
            whole = WHOLE_BYTES * parameters / shares <= WHOLE_SHARE * room
            float32 = chosen["compute_dtype"] in ("fp32", "float32")
            found["learnt_in_bytes"] = 4 if whole or float32 else 2
        rows = {"batch_size": division.batch_size, "gradient_accumulation_steps": division.accumulation}
        return {**found, **rows}


def _asked(chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {**chosen, "bits": AUTO if _is_auto(chosen) else chosen["bits"]}


def _is_auto(chosen: Mapping[str, Any]) -> bool:
    return chosen.get("auto_bits") is not None and chosen["bits"] == chosen["auto_bits"]


ALONE = Placement(Division(1, 1, 1))
