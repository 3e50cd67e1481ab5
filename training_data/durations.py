"""How long a fine-tune takes, and how well that was foretold: learnt from those that have finished.

Without one on such a device it is arithmetic: 4 operations for each weight and token with frozen weights, 6
if all learn, half as many again with checkpointing (Kaplan et al. 2020, arXiv:2001.08361, appendix B), at a
rate that is a guess and said to be one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from training_data.machines import Machine
from training_data.model_shape import ModelShape

NEAREST = 5  # finished jobs that an estimate goes by
# Operations a second that training reaches, until it is known: a fifth of the makers' figures for bfloat16 by
# name of the device; for a CPU, per core, what two cores with AVX-512 came to.
OPERATIONS_A_SECOND = {
    "H200": 200e12, "H100": 200e12, "A100": 62e12, "L40": 36e12, "4090": 33e12, "3090": 14e12, "A10": 25e12,
    "L4": 24e12, "T4": 5e12,
}  # fmt: skip
OTHER_GPU, CPU_CORE = 10e12, 30e9
# Seconds beside the arithmetic of a step, and bytes a second at which weights are converted and quantised.
FIXED_SECONDS = {"prepare": 5.0, "train": 20.0, "export": 12.0, "verify": 15.0, "publish": 4.0}
CONVERTED_BYTES_A_SECOND = 100e6
CORRECTIONS = (0.5, 2.0)  # what is learnt beyond these is not the arithmetic's error


@dataclass(frozen=True, kw_only=True)
class Past:
    """A job that has succeeded, as its steps' results tell.

    Args:
        device: the name of its GPUs; None: the CPU.
        seconds: how long each step took, by name.
        foretold: what had been estimated for it: seconds, arithmetic_bytes, peak_bytes; empty: nothing.
    """

    device: str | None
    parameters: int
    peak_bytes: int
    seconds: Mapping[str, float]
    foretold: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Finished(Past):
    """A fine-tune. `gain`: how many times as fast as one GPU those that trained it are reckoned to be."""

    gain: float = 1.0
    hyperparameters: Mapping[str, Any]
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Duration:
    """Args:
    seconds: by step.
    jobs: how many finished ones it goes by; 0: arithmetic at a guessed rate.
    """

    seconds: dict[str, float]
    jobs: int

    @property
    def total(self) -> float:
        return math.fsum(self.seconds.values())


def alike(finished: Sequence[Finished], machine: Machine) -> list[Finished]:
    """Those that ran on such a device, newest first."""
    return [job for job in finished if job.device == machine.device and job.tokens_per_second > 0]


def nearest(
    finished: Sequence[Finished], parameters: int, chosen: Mapping[str, Any], gain: float = 1.0
) -> list[Finished]:
    """Those most like a training: by the model's size, how many train together, and what makes a step cost
    more or less.
    """

    def distance(job: Finished) -> float:
        other: int = sum(
            job.hyperparameters.get(name, "lora") != chosen.get(name, "lora")
            for name in ("bits", "method", "tuning", "compute_dtype", "gradient_checkpointing")
        )
        as_many = math.isclose(job.gain, gain)
        return abs(math.log(max(1, job.parameters) / max(1, parameters))) + other + (not as_many)

    ordered = sorted(finished, key=distance)[:NEAREST]
    # Others say little once there is one of nearly the same size that was made in the same way.
    close = [job for job in ordered if distance(job) < math.log(2)]
    return close or ordered


def duration(
    shape: ModelShape,
    chosen: Mapping[str, Any],
    *,
    tokens: float,
    machine: Machine,
    threads: int,
    finished: Sequence[Finished],
    gain: float = 1.0,
) -> Duration:
    """How long each step of a fine-tune takes.

    Args:
        tokens: that are trained on, in all passes together.
        finished: fine-tunes on any device.
        gain: how many times as fast as one GPU those are that train it together.
    """
    near = nearest(alike(finished, machine), shape.parameters, chosen, gain)
    cost = operations(shape.parameters, chosen)
    if not near:
        seconds = dict(FIXED_SECONDS)
        seconds["train"] += tokens * cost / (gain * rate_of(machine, threads))
        seconds["export"] += 4 * shape.parameters / CONVERTED_BYTES_A_SECOND
        return Duration(seconds, 0)
    a_token = median(
        cost / operations(job.parameters, job.hyperparameters) / job.tokens_per_second * job.gain / gain
        for job in near
    )
    # What a training takes besides: imports, loading, evaluations, checkpoints.
    besides = median(max(0.0, job.seconds["train"] - job.tokens / job.tokens_per_second) for job in near)
    seconds = {name: median(_scaled(job, name, shape.parameters) for job in near) for name in FIXED_SECONDS}
    return Duration({**seconds, "train": besides + tokens * a_token}, len(near))


def operations(parameters: int, chosen: Mapping[str, Any]) -> float:
    """Of one token's way through a model and back."""
    each = 6 if chosen.get("tuning", "lora") == "full" else 4
    # The base is asked too, and learns nothing; by kto, both also of each question with another's answer; by
    # grpo the answers are written first.
    pairs = {"dpo": 1.25, "kto": 2.0, "grpo": 2.0}.get(chosen.get("method", ""), 1)
    return float(parameters * each * pairs * (1.5 if chosen["gradient_checkpointing"] else 1))


def _scaled(job: Finished, step: str, parameters: int) -> float:
    """What a step of it took: of a larger model, the part that is not the same for all takes longer."""
    took = job.seconds.get(step, FIXED_SECONDS[step])
    fixed = min(took, FIXED_SECONDS[step])
    return fixed + (took - fixed) * parameters / max(1, job.parameters)


def rate_of(machine: Machine, threads: int) -> float:
    """Operations a second that is guessed of a machine."""
    if machine.device is None:
        return CPU_CORE * threads
    known = (rate for name, rate in OPERATIONS_A_SECOND.items() if name in machine.device)
    return next(known, OTHER_GPU)


def correction(alike: Sequence[Past]) -> float:
    """By how much jobs on such a device, newest first, peaked above, or below, what the arithmetic says."""
    ratios = [
        job.peak_bytes / job.foretold["arithmetic_bytes"]
        for job in alike[: 2 * NEAREST]
        if job.foretold.get("arithmetic_bytes")
    ]
    low, high = CORRECTIONS
    return min(high, max(low, median(ratios))) if ratios else 1.0


def own_error(finished: Sequence[Past]) -> dict[str, Any]:
    """How what was foretold compares with what came out, over the finished jobs for which there is both."""
    pairs = [job for job in finished if job.foretold.get("seconds") and job.foretold.get("peak_bytes")]
    if not pairs:
        return {
            "jobs": 0,
            "text": "No finished job of this kind has been estimated yet: these figures are untried.",
        }
    times = [sum(job.seconds.values()) / job.foretold["seconds"] for job in pairs]
    peaks = [job.peak_bytes / job.foretold["peak_bytes"] for job in pairs]
    time, memory = _range(times), _range(peaks)
    jobs = f"The last {len(pairs)} jobs" if len(pairs) > 1 else "The last job"
    return {
        "jobs": len(pairs),
        "time": {"lowest": round(min(times), 2), "highest": round(max(times), 2)},
        "memory": {"lowest": round(min(peaks), 2), "highest": round(max(peaks), 2)},
        "text": f"{jobs} took {time} times what was estimated, and {memory} times the memory.",
    }


def _range(ratios: Sequence[float]) -> str:
    low, high = f"{min(ratios):.2g}", f"{max(ratios):.2g}"
    return low if low == high else f"{low}–{high}"
