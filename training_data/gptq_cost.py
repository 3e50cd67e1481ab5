"""What quantising a base to GPTQ takes, by arithmetic over the model's shape; no torch is asked.

It goes layer by layer (Frantar et al. 2022, arXiv:2210.17323, section 3): a layer's matrices see what the
calibration's tokens have become so far, each gives the Hessian of its inputs, and its columns are rounded one
after another, each error being taken up by those that follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from training_data.durations import Past, correction
from training_data.fitting import Need
from training_data.footprint import CONTEXT_BYTES, FRAGMENTATION, MIB, PROCESS_BYTES, Memory
from training_data.machines import Machine
from training_data.model_shape import Matrix, ModelShape

HALF, SINGLE = 2, 4  # bytes
GROUP_BYTES = 2  # of each group's scale; its zero has as many bits as a weight
# Matrices whose rounding is at work at once: the weights, what they become, and their errors.
WORKING_COPIES = 3
# A matrix's Hessian, its inverse, and the factor that the rounding goes by.
HESSIAN_COPIES = 3
LEAST_ROWS = 32
QUANTIZER_BYTES = 210 * MIB  # gptqmodel, what it imports, and its threads' heaps (docs/experiments.md)
FIXED_SECONDS = {"quantize": 25.0, "verify": 15.0, "publish": 4.0}
VERIFIED_BYTES_A_SECOND = 200e6  # of both models, which are loaded and asked


@dataclass(frozen=True)
class Calibrated:
    """What a model is calibrated on.

    Args:
        rows, tokens: of all that is taken.
        longest: tokens of the longest row.
    """

    rows: int
    tokens: int
    longest: int


@dataclass(frozen=True, kw_only=True)
class FinishedQuantization(Past):
    """`operations` are those that are reckoned here."""

    operations: float


def quantizing_memory(shape: ModelShape, counted: Calibrated, *, gpu: bool) -> tuple[Memory, Memory | None]:
    """What of the host's memory, and of a GPU's where there is one, it takes at most.

    The whole model lies in the host's memory in 16 bits; one layer at a time goes where it is computed, with
    what the tokens are there, before it and after it.
    """
    per_layer = list(_layer(shape))
    largest = max(per_layer, key=lambda matrix: matrix.parameters)
    layer = {
        "layer": HALF * sum(matrix.parameters for matrix in per_layer),
        "tokens": 2 * HALF * counted.tokens * shape.hidden,
        "hessians": SINGLE * sum(matrix.inputs**2 for matrix in per_layer)
        + SINGLE * HESSIAN_COPIES * largest.inputs**2,
        "rounding": SINGLE * WORKING_COPIES * largest.parameters,
        "forward": SINGLE * counted.longest * (4 * shape.hidden + 3 * shape.intermediate),
    }
    whole = {"weights": HALF * shape.parameters}
    if not gpu:
        return Memory({**whole, **layer, "process": PROCESS_BYTES["cpu"] + QUANTIZER_BYTES}), None
    layer["fragmentation"] = int(FRAGMENTATION * sum(layer.values()))
    return Memory({**whole, "process": PROCESS_BYTES["cuda"] + QUANTIZER_BYTES}), Memory(
        {**layer, "cuda": CONTEXT_BYTES}
    )


def best_need(
    shape: ModelShape,
    counted: Calibrated,
    machines: Sequence[Machine],
    finished: Sequence[FinishedQuantization],
) -> Need:
    """What it takes on the machine with the most room for it."""
    needs = []
    for machine in machines:
        ram, device = quantizing_memory(shape, counted, gpu=machine.device is not None)
        needs.append(Need(machine, ram, device, correction(usual(finished, machine))))
    return min(needs, key=lambda need: need.share)


def fewer_rows(shape: ModelShape, counted: Calibrated, need: Need) -> list[dict[str, Any]]:
    """The change that makes it fit there: the first halving of the rows that does; empty: none does."""
    rows = counted.rows // 2
    while rows >= LEAST_ROWS:
        fewer = replace(counted, rows=rows, tokens=counted.tokens * rows // counted.rows)
        ram, device = quantizing_memory(shape, fewer, gpu=need.device is not None)
        if replace(need, ram=ram, device=device).fits:
            return [{"max_rows": rows}]
        rows //= 2
    return []


def verifying_memory(shape: ModelShape) -> int:
    """What measuring takes of the host's memory: one model after the other, in float32."""
    return PROCESS_BYTES["cpu"] + SINGLE * shape.parameters


def quantized_size(shape: ModelShape, *, bits: int, group_size: int) -> int:
    """Bytes of the safetensors: packed linear layers with their scales and zeros, all else in 16 bits."""
    packed = shape.linear_parameters * (bits + (8 * GROUP_BYTES + bits) / group_size) / 8
    return int(packed + HALF * (shape.parameters - shape.linear_parameters))


def operations(shape: ModelShape, counted: Calibrated) -> float:
    """Of the tokens' two ways through each layer, the Hessians, their inverses, and the rounding."""
    solved = sum(
        2.0 * counted.tokens * each.inputs**2 + each.inputs**3 + 2.0 * each.outputs * each.inputs**2
        for each in shape.linear
    )
    return 4.0 * shape.linear_parameters * counted.tokens + solved


def quantizing_seconds(
    shape: ModelShape, needed: float, *, rate: float, finished: Sequence[FinishedQuantization]
) -> dict[str, float]:
    """How long each step takes: as those that have finished on such a device did, or at a guessed rate.

    Args:
        needed: operations.
        rate: of them a second, where none has finished.
        finished: on such a device, newest first.
    """
    an_operation = (
        median(_beyond(job, "quantize") / job.operations for job in finished) if finished else 1 / rate
    )
    a_parameter = (
        median(_beyond(job, "verify") / job.parameters for job in finished)
        if finished
        else 2 * SINGLE / VERIFIED_BYTES_A_SECOND
    )
    return {
        **FIXED_SECONDS,
        "quantize": FIXED_SECONDS["quantize"] + needed * an_operation,
        "verify": FIXED_SECONDS["verify"] + shape.parameters * a_parameter,
    }


def _beyond(job: FinishedQuantization, step: str) -> float:
    """What a step of it took, less what it takes of any model."""
    return max(0.0, job.seconds.get(step, 0.0) - FIXED_SECONDS[step])


def usual(finished: Sequence[FinishedQuantization], machine: Machine) -> list[FinishedQuantization]:
    """Those that ran on such a device."""
    return [job for job in finished if job.device == machine.device and job.operations]


def _layer(shape: ModelShape) -> Sequence[Matrix]:
    """The matrices of one layer."""
    return shape.linear[: max(1, len(shape.linear) // max(1, shape.layers))]
