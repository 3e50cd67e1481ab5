"""`lathe fine-tune --dry-run`, `lathe quantize --dry-run`: what it would take, as the API estimates it."""

import time
from typing import Any

import typer

from cli.client import Client
from cli.flags import flags_of
from cli.output import ExitStatus, print_json, stderr, stdout
from cli.tables import keep_whole, table
from cli.text import harmless, size
from cli.track import ENDED
from db.errors import InvalidInput, LatheError
from db.params.values import Params

JSON = dict[str, Any]
POLL_SECONDS = 1.0
SHOWN = (
    "learning_rate", "epochs", "max_steps", "effective_batch_size", "max_length", "bits", "lora_rank",
    "lora_alpha",
)  # fmt: skip


def show_estimate(client: Client, job: JSON, model: type[Params], *, json: bool) -> None:
    """Wait for an estimate's job, and print it. What cannot fit is a failure.

    Raises:
        LatheError: there is no estimate: the rows or the base cannot be trained on, or the job was ended.
    """
    if job["status"] not in ENDED and not json:
        stderr().print(f"Estimating as {job['id']} …", style="dim")
        if job.get("waits_for"):
            stderr().print(f"It waits for {job['waits_for']}, which makes its base model.", style="dim")
    while job["status"] not in ENDED:
        time.sleep(POLL_SECONDS)
        job = client.job(job["id"])
    if job["status"] != "succeeded":
        error = job["error"] or {"message": f"{job['id']} is {job['status']}.", "code": "", "param": None}
        kind = InvalidInput if error.get("param") else LatheError
        raise kind(error["message"], param=error.get("param"), code=error["code"])
    told = job["result"]
    if json:
        print_json(told)
    else:
        _print(told, model, client.warnings(job["id"]))
    if told["refusal"] is not None:
        raise typer.Exit(ExitStatus.FAILED)


def _print(told: JSON, model: type[Params], warnings: list[str]) -> None:
    made = table("What", "Estimate", "How")
    keep_whole(made, 0, 1)
    for row in _rows(told):
        made.add_row(*map(harmless, row))
    console = stdout()
    console.print(made)
    console.print(harmless(told["own_error"]["text"]), style="dim")
    for warning in warnings:
        console.print(f"! {harmless(warning)}", style="yellow", markup=False, soft_wrap=True)
    refused = told["refusal"]
    if refused is None:
        if not told["fits"]:
            console.print("That is all there is, and may not be enough.", style="yellow")
        return
    stderr().print(harmless(refused["message"]), style="red", soft_wrap=True)
    for change in refused["changes"]:
        stderr().print(f"  {_flags(change, model)}", style="bold", soft_wrap=True)


def _rows(told: JSON) -> list[tuple[str, str, str]]:
    """Each figure: what it is, how much, and how it was reckoned."""
    how, data, memory, disk = told["how"], told["data"], told["memory"], told["disk"]
    if "steps" in told:
        chosen = _chosen(told["hyperparameters"])
        rows = [
            ("Hyperparameters", chosen, "as given, or as auto chooses; all by --json"),
            ("Weights that learn", f"{told['model']['trainable_parameters']:,}", how["trainable_parameters"]),
            ("Tokens an epoch", f"{data['tokens_an_epoch']:,} in {data['rows']:,} rows", how["tokens"]),
            ("Steps", f"{told['steps']:,}", how["steps"]),
        ]
    else:
        rows = [("Calibration", f"{data['tokens']:,} tokens in {data['rows']:,} rows", how["data"])]
    if memory["device"] is not None:
        there = told["machine"]["device_bytes"]
        devices = told.get("placement", {}).get("devices", 1)
        of_each = f", each of {devices}" * (devices > 1)
        rows.append((f"GPU memory, at most{of_each}", _of(memory["device"]["bytes"], there), how["memory"]))
    ram_how = how["memory"] if memory["device"] is None else "the process, and a tensor at a time"
    rows.append(("RAM, at most", _of(memory["ram"]["bytes"], told["machine"]["ram_bytes"]), ram_how))
    rows.append(("Disk, at most", _of(disk["bytes"], disk["free_bytes"], "free"), how["disk"]))
    rows.append(("Time", _time(told["time"]["seconds"]), how["time"]))
    return rows


def _chosen(hyperparameters: JSON) -> str:
    """Those that people ask for first."""
    told = [(name, hyperparameters.get(name)) for name in SHOWN]
    return "\n".join(f"{name} {value:g}" for name, value in told if isinstance(value, int | float))


def _of(bytes_: int, there: int | None, what: str = "") -> str:
    return size(bytes_) + (f" of {size(there)} {what}".rstrip() if there else "")


def _time(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def _flags(changes: JSON, model: type[Params]) -> str:
    """The changes as they are typed."""
    flags = flags_of(model)
    return " ".join(
        f"{flags[name].spelling} {str(value).lower() if isinstance(value, bool) else value}"
        for name, value in changes.items()
        if name != "gradient_accumulation_steps"
    )
