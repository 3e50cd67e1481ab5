"""What a fine-tune will take, reckoned before it starts.

It goes by the rows as they were counted, the base's shape, what workers report of their machines, and what
finished fine-tunes took.
"""

import shutil
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.params.fine_tune import FineTuneParams
from db.params.values import quantizations_made
from training_data.answer_batches import GRPO
from training_data.durations import Duration, Finished, alike, correction, duration, own_error
from training_data.fitting import HARMLESS, Fitting, Need, describe, refusal, size
from training_data.footprint import cache_use, disk_use, export_memory
from training_data.machines import Machine, read_machines
from training_data.model_shape import ModelShape
from training_data.placement import BASE_SHARE, WHOLE_BYTES, WHOLE_SHARE, Placing, gain
from training_data.presets import AUTO
from worker.step import Step
from worker.steps.stacking import started_adapter

DOES_NOT_FIT = "does_not_fit"
SAMPLED_BYTES = 128 * 1024**2  # of a file of more than twice that, an estimate looks at so much
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Counted:
    """What there is to train on.

    Args:
        rows, tokens: of one pass.
        longest: tokens of the longest row, of those that are evaluated on too.
        every: only every so manieth row was looked at; rows and tokens are times that.
        row_bytes: of the files that they are in.
    """

    rows: int
    tokens: int
    longest: int
    every: int
    row_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Args:
    chosen: the hyperparameters, with what `auto` settled on so that it fits.
    told: all of it, as it is stored and shown.
    """

    chosen: dict[str, Any]
    told: dict[str, Any]

    def require_fit(self) -> None:
        """Raises:
        InvalidInput: it cannot fit.
        """
        refused = self.told["refusal"]
        if refused is not None:
            raise InvalidInput(refused["message"], param=refused["param"], code=refused["code"])


def looked_at_every(step: Step) -> int:
    """1 where all rows are counted; of huge files an estimate looks at every so manieth."""
    every = max(1, sum(file.bytes for file in step.input.files.values()) // SAMPLED_BYTES)
    if every > 1:
        step.event(
            f"The files are large: one row in {every} is counted, and the figures are times {every}.",
            level="warn",
            every=every,
        )
    return every


def reckon(
    step: Step,
    params: FineTuneParams,
    chosen: dict[str, Any],
    shape: ModelShape,
    counted: Counted,
    *,
    downloaded: bool = True,
) -> Estimate:
    """Estimate a fine-tune, and settle what is `auto` so that it fits, which is told.

    Args:
        chosen: its hyperparameters, resolved.
        downloaded: whether the base's weights are here already.
    """
    seen = counted
    if chosen.get("method") == "pretraining":  # whose texts are learnt in sequences that are full
        length = int(chosen["max_length"])
        seen = replace(counted, rows=max(1, (counted.tokens - 2) // (length - 1) + 1), longest=length)
    if chosen.get("method") == GRPO:  # whose rows are answered several times, at most so long
        answers, length = int(chosen["num_generations"]), int(chosen["max_completion_length"])
        seen = replace(
            counted,
            rows=counted.rows * answers,
            tokens=(counted.tokens + counted.rows * length) * answers,
            longest=counted.longest + length,
        )
    finished = [job for row in step.input.finished if (job := _finished(row)) is not None]
    machines = read_machines(step.input.machines)
    where = socket.gethostname() if params.cluster is None else f"cluster {params.cluster}"
    known = machines or [Machine(where)]
    fitting = Fitting(
        shape,
        seen.longest,
        {each: correction(alike(finished, each)) for each in known},
        seen.rows,
        _placing(step, params),
    )
    as_computed = {**chosen, **_computed(chosen, known, shape)}
    settled = _settled(step, params, as_computed, fitting)
    chosen, as_computed = {**chosen, **settled}, {**as_computed, **settled}
    need = fitting.best(as_computed)
    disk = _disk(step, params, as_computed, shape, counted, downloaded=downloaded)
    takes = duration(
        shape,
        as_computed,
        tokens=_trained_tokens(chosen, seen),
        machine=need.machine,
        threads=step.input.settings.threads,
        finished=finished,
        gain=need.placement.gain,
    )
    refused = _refusal(need, fitting, as_computed, disk, params)
    told = {
        "fits": refused is None and need.fits,
        "refusal": refused,
        "settled": settled,
        "model": {"parameters": shape.parameters, "trainable_parameters": shape.trainable(chosen)},
        "data": {
            "rows": counted.rows,
            "tokens_an_epoch": counted.tokens,
            "longest": counted.longest,
            "counted_every": counted.every,
        },
        "steps": chosen["total_steps"],
        "hyperparameters": chosen,
        "machine": machine_of(need),
        "placement": {"devices": need.placement.devices, **asdict(need.placement.division)},
        "memory": memory_of(need, export_memory(shape)),
        "disk": disk,
        "time": {"seconds": round(takes.total, 1), "steps": rounded(takes.seconds), "jobs": takes.jobs},
        "how": _how(counted, need, takes, finished, _limits(params, machines)),
        "own_error": own_error(finished),
        "foretold": {
            "seconds": round(takes.total, 1),
            "train_seconds": round(takes.seconds["train"], 1),
            "arithmetic_bytes": (need.device or need.ram).total,
            "peak_bytes": need.peak_bytes,
        },
    }
    return Estimate(chosen, told)


def tell(step: Step, estimate: Estimate) -> None:
    """Say what a training is going to take."""
    told = estimate.told
    memory, machine = told["memory"], told["machine"]
    peak = memory["device"] or memory["ram"]
    where = machine["device"] or "the host's memory"
    if told["placement"]["devices"] > 1:
        where = f"each of {told['placement']['devices']} {where}"
    jobs = told["time"]["jobs"]
    by = f"by {jobs} finished job{'s' * (jobs != 1)}" if jobs else "by arithmetic alone"
    tight = not told["fits"] and told["refusal"] is None
    step.event(
        f"{told['model']['trainable_parameters']:,} weights will learn in {told['steps']} steps. Estimated: "
        f"{told['time']['seconds']:.0f} s ({by}), {size(peak['bytes'])} of {where}, "
        f"{size(told['disk']['bytes'])} of disk." + (" That is all there is, and may not be enough." * tight),
        level="warn" if tight else "info",
        estimate=told["foretold"],
    )


def _settled(step: Step, params: FineTuneParams, chosen: dict[str, Any], fitting: Fitting) -> dict[str, Any]:
    """What is `auto` and changes nothing of the result, turned until it fits; empty if it fits, or cannot."""
    before = fitting.best(chosen)
    free = tuple(name for name in HARMLESS if getattr(params, name) == AUTO)
    if params.gradient_accumulation_steps != AUTO:
        free = tuple(name for name in free if name != "batch_size")
    if before.fits or not free:
        return {}
    found = fitting.changes(chosen, free)
    if not found:
        return {}
    settled = {**found[0], **({"bits": 4} if "bits" in found[0] else {})}  # 8 is the user's to ask for
    now = fitting.best({**chosen, **settled})
    step.event(
        f"With batch_size {chosen['batch_size']} this training would take about {size(before.peak_bytes)} on "
        f"{before.machine}: auto settles on {describe(settled)}, with which that is {size(now.peak_bytes)}.",
        settled=settled,
    )
    return settled


def _refusal(
    need: Need, fitting: Fitting, chosen: dict[str, Any], disk: dict[str, Any], params: FineTuneParams
) -> dict[str, Any] | None:
    """Why it cannot fit, and which changes make it fit; None if it can."""
    if need.cannot_fit:
        changes = fitting.changes(chosen)
        param = next(iter(changes[0])) if changes else "base_model"
        message = refusal(need, changes)
        return {"code": DOES_NOT_FIT, "message": message, "param": param, "changes": changes}
    lacking = disk["bytes"] - disk["free_bytes"]
    if lacking <= 0:
        return None
    less: dict[str, Any] = {}
    if params.keep_checkpoints > 1:
        less["keep_checkpoints"] = 1
    made = quantizations_made(params.quantizations)
    if len(made) > 1:
        less["quantizations"] = [params.quantizations[0] if params.quantizations[0] != AUTO else "Q4_K_M"]
    saved = disk["parts"]["checkpoints"] * (params.keep_checkpoints - 1) / (params.keep_checkpoints + 2)
    saved += disk["parts"]["quantizations"] * (1 - 1 / len(made))
    enough = bool(less) and saved >= lacking
    advice = f", or take {' and '.join(f'{name} {value}' for name, value in less.items())}" * enough
    return {
        "code": DOES_NOT_FIT,
        "message": f"This job needs about {size(disk['bytes'])} of disk through its export, and "
        f"{size(disk['free_bytes'])} are free: free {size(lacking)}, with `lathe gc` perhaps{advice}.",
        "param": next(iter(less)) if enough else None,
        "changes": [less] if enough else [],
    }


def _disk(
    step: Step,
    params: FineTuneParams,
    chosen: Mapping[str, Any],
    shape: ModelShape,
    counted: Counted,
    *,
    downloaded: bool,
) -> dict[str, Any]:
    quantizations = quantizations_made(params.quantizations)
    parts = disk_use(
        shape,
        chosen,
        quantizations=quantizations,
        keep=params.keep_checkpoints,
        rows_bytes=counted.row_bytes,
        adapter_alone=params.publish == "adapter",
    )
    cache = cache_use(shape, quantizations=quantizations, downloaded=downloaded)
    return disk_of(step, parts, cache)


def disk_of(step: Step, parts: Mapping[str, int], cache: Mapping[str, int]) -> dict[str, Any]:
    """What a job takes of the disk that its folder is on, which may be the cache's, too."""
    root = step.input.settings.cache_dir
    while not root.exists():
        root = root.parent
    if root.stat().st_dev == step.input.folder.stat().st_dev:
        parts = {**parts, **cache}
    return {
        "bytes": sum(parts.values()),
        "free_bytes": shutil.disk_usage(step.input.folder).free,
        "parts": dict(parts),
    }


def machine_of(need: Need) -> dict[str, Any]:
    """Where it is reckoned to run."""
    return {
        "host": need.machine.host,
        "device": need.machine.device,
        "device_bytes": need.machine.device_bytes,
        "devices": need.machine.devices,
        "ram_bytes": need.machine.ram_bytes,
    }


def memory_of(need: Need, after_bytes: int) -> dict[str, Any]:
    """What it takes there, with its parts, and of the host's memory by the steps that follow."""
    device = None
    if need.device is not None:
        device = {"bytes": need.peak_bytes, "parts": dict(need.device.parts)}
    return {
        "device": device,
        "ram": {"bytes": need.ram_bytes, "parts": dict(need.ram.parts)},
        "after_training_ram_bytes": after_bytes,
        "correction": round(need.correction, 3),
    }


def _how(
    counted: Counted, need: Need, takes: Duration, finished: list[Finished], limits: str
) -> dict[str, str]:
    """How each figure was reckoned, in words."""
    like = len(alike(finished, need.machine))
    by_jobs = f", times {need.correction:.2f}, what {like} finished jobs there came to" if like else ""
    rows = "every row was turned into tokens as a training would"
    if counted.every > 1:
        rows = f"the files are large: one row in {counted.every} was turned into tokens"
    time = f"by {takes.jobs} finished jobs like it on such a device, by operations a token"
    if not takes.jobs:
        time = "no job has finished on such a device yet: operations a token, at a guessed rate"
    return {
        "trainable_parameters": "by the shapes of the base's tensors and the layers that get an adapter",
        "tokens": f"{rows}.",
        "steps": "rows by batch_size and gradient_accumulation_steps, times epochs; or max_steps.",
        "memory": "weights, adapter, gradients, optimizer, what layers keep for the backward pass at the "
        f"longest row, and the output layer's tile{by_jobs}.{_spread(need)}{limits}",
        "disk": "rows, checkpoints, the merged model, the 16-bit GGUF, each quantization, and the base's own "
        "to verify against.",
        "time": f"{time}.",
    }


def _spread(need: Need) -> str:
    """How it is spread over several GPUs, in words."""
    division = need.placement.division
    if need.placement.spread > 1:
        return f" Of each of {need.placement.devices} GPUs: one process spreads the layers over them."
    if division.ranks == 1:
        return ""
    what = "a share" if division.sharded else "a copy"
    rows = f"{division.batch_size} × {division.accumulation} rows a step"
    of = "each GPU" if need.device is not None else "all of them together"
    return f" {division.ranks} processes train, each with {what} of the weights, on {rows}; it is of {of}."


def _limits(params: FineTuneParams, machines: list[Machine]) -> str:
    """What is not known of where it would train."""
    if params.cluster is not None:
        return f" What each machine of the cluster {params.cluster} has is not known."
    return "" if machines else " No live worker trains: what there is is not known."


def _finished(row: dict[str, Any]) -> Finished | None:
    """A finished job as its steps' results tell; None where it was not estimated."""
    train, told = row["results"]["train"], row["results"]["prepare"].get("estimate")
    if not told:
        return None
    return Finished(
        device=row["device"],
        parameters=told["model"]["parameters"],
        hyperparameters=train["hyperparameters"],
        tokens=int(train["trained_tokens"]),
        tokens_per_second=float(train["tokens_per_second"]),
        gain=gain(train.get("processes", 1), train.get("parallel")) if row["device"] is not None else 1.0,
        peak_bytes=int(train["peak_memory_bytes"]),
        seconds=row["seconds"],
        foretold=told["foretold"],
    )


def _trained_tokens(chosen: Mapping[str, Any], counted: Counted) -> float:
    seen = chosen["total_steps"] * chosen["batch_size"] * chosen["gradient_accumulation_steps"]
    if not chosen.get("max_steps"):
        seen = min(seen, counted.rows * chosen["epochs"])
    return float(counted.tokens / max(1, counted.rows) * seen)


def _placing(step: Step, params: FineTuneParams) -> Placing:
    """What decides how it is spread over several GPUs; a cluster's workers are reckoned as one."""
    merges_first = params.tuning == "full" and started_adapter(step) is not None
    return Placing(
        params.model_dump(mode="json"),
        processes=step.input.settings.train_processes if params.cluster is None else 1,
        deepspeed=params.deepspeed is not None,
        divisible=params.merge_base is None and not merges_first,
    )


def _computed(chosen: Mapping[str, Any], machines: list[Machine], shape: ModelShape) -> dict[str, Any]:
    """What the training will settle once it sees its device: dtypes, and the bits of the base."""
    gpus = [each for each in machines if each.device is not None]
    bfloat16 = chosen["compute_dtype"] in ("bf16", "bfloat16") and (gpus or "avx512_bf16" in _cpu_flags())
    there = max(
        (each.device_bytes or 0 if gpus else each.ram_bytes or 0 for each in gpus or machines), default=0
    )
    bits = chosen["bits"]
    if bits == AUTO:
        bits = 16 if gpus and 2 * shape.parameters <= BASE_SHARE * there else 4
    whole = not there or WHOLE_BYTES * shape.parameters <= WHOLE_SHARE * there
    return {
        "compute_dtype": "bfloat16" if bfloat16 else "float32",
        "bits": bits,
        "auto_bits": bits if chosen["bits"] == AUTO else None,
        "learnt_in_bytes": 4 if whole or not bfloat16 else 2,
    }


def _cpu_flags() -> str:
    return CPU_INFO.read_text() if CPU_INFO.exists() else ""


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by step, to a tenth."""
    return {name: round(value, 1) for name, value in seconds.items()}
