"""What quantising a base to GPTQ will take, reckoned before it starts."""

import socket
from typing import Any

from db.params.quantize import QuantizeParams
from training_data.durations import own_error, rate_of
from training_data.fitting import Need, refusal, size
from training_data.gptq_cost import (
    HALF,
    Calibrated,
    FinishedQuantization,
    best_need,
    fewer_rows,
    operations,
    quantized_size,
    quantizing_seconds,
    usual,
    verifying_memory,
)
from training_data.machines import Machine, read_machines
from training_data.model_shape import ModelShape
from worker.step import Step
from worker.steps.calibration import Calibration
from worker.steps.reckoning import DOES_NOT_FIT, Estimate, disk_of, machine_of, memory_of, rounded

WHAT = "Quantising"
OTHERWISE = "It holds the whole model in 16 bits: take a machine with more memory, or a smaller base_model."


def reckon_quantization(
    step: Step, params: QuantizeParams, shape: ModelShape, rows: Calibration, *, downloaded: bool = True
) -> Estimate:
    """Estimate a job of the kind `quantize`.

    Args:
        rows: what it is calibrated on.
        downloaded: whether the base's weights are here already.
    """
    counted = Calibrated(len(rows.rows), rows.tokens, max(map(len, rows.rows)))
    finished = [job for row in step.input.finished if (job := _finished(row)) is not None]
    machines = read_machines(step.input.machines)
    need = best_need(shape, counted, machines or [Machine(socket.gethostname())], finished)
    there = usual(finished, need.machine)
    needed = operations(shape, counted)
    rate = rate_of(need.machine, step.input.settings.threads)
    seconds = quantizing_seconds(shape, needed, rate=rate, finished=there)
    total = round(sum(seconds.values()), 1)
    disk = _disk(step, params, shape, downloaded=downloaded)
    refused = _refusal(need, fewer_rows(shape, counted, need), disk)
    told: dict[str, Any] = {
        "fits": refused is None and need.fits,
        "refusal": refused,
        "model": {"parameters": shape.parameters},
        "data": {"rows": counted.rows, "tokens": counted.tokens, "longest": counted.longest, "of": rows.name},
        "hyperparameters": params.model_dump(mode="json", include={"bits", "group_size", "max_rows"}),
        "machine": machine_of(need),
        "memory": memory_of(need, verifying_memory(shape)),
        "disk": disk,
        "time": {"seconds": total, "steps": rounded(seconds), "jobs": len(there)},
        "how": _how(need, len(there), known=bool(machines)),
        "own_error": own_error(finished),
        "foretold": {
            "seconds": total,
            "arithmetic_bytes": (need.device or need.ram).total,
            "peak_bytes": need.peak_bytes,
            "operations": needed,
        },
    }
    return Estimate(told["hyperparameters"], told)


def tell_quantization(step: Step, estimate: Estimate) -> None:
    """Say what it is going to take."""
    told = estimate.told
    memory, time = told["memory"], told["time"]
    device = memory["device"]
    of_device = f"{size(device['bytes'])} of {told['machine']['device']}, " if device else ""
    by = f"by {time['jobs']} finished jobs" if time["jobs"] else "by arithmetic alone"
    tight = not told["fits"] and told["refusal"] is None
    step.event(
        f"Estimated: {time['seconds']:.0f} s ({by}), {of_device}{size(memory['ram']['bytes'])} of the host's "
        f"memory, {size(told['disk']['bytes'])} of disk."
        + " That is all there is, and may not be enough."
        * tight,
        level="warn" if tight else "info",
        estimate=told["foretold"],
    )


def _refusal(need: Need, changes: list[dict[str, Any]], disk: dict[str, Any]) -> dict[str, Any] | None:
    """Why it cannot fit, and what makes it fit; None if it can."""
    if need.cannot_fit:
        message = refusal(need, changes, what=WHAT, otherwise=OTHERWISE)
        param = next(iter(changes[0])) if changes else "base_model"
        return {"code": DOES_NOT_FIT, "message": message, "param": param, "changes": changes}
    lacking = disk["bytes"] - disk["free_bytes"]
    if lacking <= 0:
        return None
    return {
        "code": DOES_NOT_FIT,
        "message": f"{WHAT} needs about {size(disk['bytes'])} of disk, and {size(disk['free_bytes'])} are "
        f"free: free {size(lacking)}, with `lathe gc` perhaps.",
        "param": None,
        "changes": [],
    }


def _disk(step: Step, params: QuantizeParams, shape: ModelShape, *, downloaded: bool) -> dict[str, Any]:
    made = quantized_size(shape, bits=params.bits, group_size=params.group_size)
    # Layers that are not being worked on lie beside what is written of them.
    parts = {"layers": HALF * shape.linear_parameters, "model": made}
    return disk_of(step, parts, {"base": 0 if downloaded else HALF * shape.parameters})


def _how(need: Need, jobs: int, *, known: bool) -> dict[str, str]:
    """How each figure was reckoned, in words."""
    by_jobs = f", times {need.correction:.2f}, what {jobs} finished jobs there came to" if jobs else ""
    place = "the GPU" if need.device is not None else "the same memory"
    time = f"by {jobs} finished jobs on such a device, by operations"
    if not jobs:
        time = "no such job has finished on such a device yet: operations, at a guessed rate"
    unknown = "" if known else " No live worker trains: what there is is not known."
    return {
        "data": "the rows that are taken, as tokens.",
        "memory": f"the model in 16 bits, and in {place} one layer, its tokens, their Hessians, and the "
        f"matrix that is rounded{by_jobs}.{unknown}",
        "disk": "the model, and the base's layers while they are not worked on.",
        "time": f"{time}.",
    }


def _finished(row: dict[str, Any]) -> FinishedQuantization | None:
    """A finished job as its steps' results tell; None where it was not estimated."""
    made = row["results"]["quantize"]
    told = made.get("estimate")
    if not told or not made.get("peak_memory_bytes"):
        return None
    return FinishedQuantization(
        device=row["device"],
        parameters=told["model"]["parameters"],
        operations=told["foretold"]["operations"],
        peak_bytes=int(made["peak_memory_bytes"]),
        seconds=row["seconds"],
        foretold=told["foretold"],
    )
