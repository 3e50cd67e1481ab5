"""`lathe sweep`: the same fine-tune with several values of some parameters, a job each, and one comparison.

A sweep is no row of its own: its jobs carry its id and their values as metadata, by which they are found.
"""

import csv
import itertools
import sys
import time
from typing import Annotated, Any

import typer

from cli.client import Client, connect
from cli.flags import (
    Flag,
    bad_value,
    check_values,
    flags_of,
    option_parameters,
    read_values,
    understand,
    with_options,
)
from cli.output import ExitStatus, JsonFlag, print_json, stderr, stdout
from cli.render import STYLES
from cli.submit import WatchFlag, check_files, told_by_flag, upload_files
from cli.sweep_table import print_sweep, sweep_of
from cli.track import ENDED
from db.errors import LatheError
from db.ids import new_id
from db.params.fine_tune import FineTuneParams

JSON = dict[str, Any]
MOST_JOBS = 64
POLL_SECONDS = 2.0
SWEEP, OF_PARAM = "sweep", "sweep."
FLAGS = flags_of(FineTuneParams)
CsvFlag = Annotated[bool, typer.Option("--csv", help="Print the table as CSV and nothing else.")]

app = typer.Typer(invoke_without_command=True, context_settings={"token_normalize_func": understand})


def register(root: typer.Typer) -> None:
    command = with_options(sweep, option_parameters("fine_tune", FineTuneParams, by_argument=tuple(FLAGS)))
    app.callback()(command)
    app.command()(show)
    root.add_typer(app, name="sweep", rich_help_panel="Make a model")


def sweep(*, context: typer.Context, watch: WatchFlag = False, json: JsonFlag = False, **params: Any) -> None:
    """Fine-tune with each of several values, given between commas, and compare what comes of it.

    $ lathe sweep --base tiny --data faq.csv --name faq --train-size 0.8 --learning-rate 1e-4,2e-4
    """
    if context.invoked_subcommand is not None:
        return
    choices = _choices(params)
    settled = {name: values[0] for name, values in choices.items()}
    swept = {name: values for name, values in choices.items() if len(values) > 1}
    if not swept:
        raise typer.BadParameter("Nothing is swept: give a parameter several values, such as 1e-4,2e-4.")
    combinations = [dict(zip(swept, row, strict=True)) for row in itertools.product(*swept.values())]
    if len(combinations) > MOST_JOBS:
        raise typer.BadParameter(f"That is {len(combinations)} jobs; a sweep has at most {MOST_JOBS}.")
    for values in combinations:
        check_values(FineTuneParams, settled | values)
    with connect() as client:
        sweep_id = _submit(client, settled, combinations)
        if watch:
            _follow(client, sweep_id, stdout() if not json else stderr())
        found = sweep_of(client, sweep_id)
    if json:
        print_json(found)
    else:
        print_sweep(found, stdout())
        stdout().print(f"Look again:  lathe sweep show {sweep_id}", style="dim")
    if watch and any(row["status"] != "succeeded" for row in found["jobs"]):
        raise typer.Exit(ExitStatus.FAILED)


def show(
    sweep_id: Annotated[str, typer.Argument(metavar="SWEEP", help="Its id: sweep-….", show_default=False)],
    *,
    as_csv: CsvFlag = False,
    json: JsonFlag = False,
) -> None:
    """Compare the jobs of a sweep, the best one first.

    $ lathe sweep show sweep-… --csv
    """
    with connect() as client:
        found = sweep_of(client, sweep_id)
    if json:
        print_json(found)
    elif as_csv:
        _print_csv(found)
    else:
        print_sweep(found, stdout())


def _choices(params: JSON) -> dict[str, list[Any]]:
    """The values of each parameter that was given: of one that a comma divides, several."""
    found: dict[str, list[Any]] = {}
    for name, typed in params.items():
        if typed in (None, []):
            continue
        parts = _parts(FLAGS[name], typed)
        if len(parts) > 1 and len(set(parts)) != len(parts):
            raise bad_value(f"{typed!r} has a value twice.", FLAGS[name])
        found[name] = [read_values(FineTuneParams, {name: part})[name] for part in parts]
    return found


def _parts(flag: Flag, typed: Any) -> list[Any]:
    """A text may hold commas, and a list is divided by them as it is."""
    is_scalar = not flag.many and not flag.is_file and not flag.is_files and not flag.is_object
    if not is_scalar or (flag.type is str and not flag.choices) or not isinstance(typed, str):
        return [typed]
    return [part.strip() for part in typed.split(",") if part.strip()] or [typed]


def _submit(client: Client, settled: JSON, combinations: list[JSON]) -> str:
    """Submit a job for each combination, or none at all."""
    sweep_id, submitted = new_id("sweep"), []
    check_files(FineTuneParams, settled)
    values, uploaded = upload_files(client, FineTuneParams, settled, purpose="fine-tune")
    try:
        with told_by_flag(client, FineTuneParams, uploaded):
            for number, chosen in enumerate(combinations, start=1):
                own = {"name": f"{settled['name']}-{number}"}
                notes = {f"{OF_PARAM}{name}": str(value) for name, value in chosen.items()}
                params = values | chosen | own
                job = client.submit("fine_tune", params, metadata={SWEEP: sweep_id, **notes})
                submitted.append(job["id"])
    except LatheError:
        for job_id in submitted:
            client.steer(job_id, "cancel")
        raise
    return sweep_id


def _follow(client: Client, sweep_id: str, console: Any) -> None:
    """Wait until every job has ended, telling each as it does."""
    told: set[str] = set()
    while True:
        rows = sweep_of(client, sweep_id)["jobs"]
        for row in rows:
            if row["status"] in ENDED and row["id"] not in told:
                told.add(row["id"])
                values = ", ".join(f"{name} {value}" for name, value in row["values"].items())
                console.print(f"{row['id']}  {values}  [{STYLES[row['status']]}]{row['status']}[/]")
        if len(told) == len(rows):
            return
        time.sleep(POLL_SECONDS)


def _print_csv(found: JSON) -> None:
    swept = list(dict.fromkeys(name for row in found["jobs"] for name in row["values"]))
    rewards = ("eval_reward", "reward") if any("reward" in row for row in found["jobs"]) else ()
    figures = (*rewards, "eval_loss", "loss", "runtime_seconds")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["id", "model", "status", *swept, *figures, "best"])
    for row in found["jobs"]:
        values = [row["values"].get(name) for name in swept]
        measured = [row.get(name) for name in figures]
        writer.writerow(
            [row["id"], row["model"], row["status"], *values, *measured, row["id"] == found["best"]]
        )
