"""`lathe projects`: who owns rows, and how much each may use."""

from typing import Annotated, Any

import typer

from cli.client import Client, connect, segment
from cli.output import JsonFlag, print_json, stdout
from cli.tables import table
from cli.text import harmless, size
from db.errors import InvalidInput

JSON = dict[str, Any]
LIMITS = {
    "max_jobs": "jobs at once",
    "max_gpu_minutes": "GPU minutes a month",
    "max_bytes": "stored",
    "max_requests_per_minute": "requests a minute",
}

app = typer.Typer(
    help="List projects; `lathe projects create ID` makes one. It takes an admin key of the project default.",
    invoke_without_command=True,
)
Id = Annotated[str, typer.Argument(metavar="PROJECT", show_default=False)]
# A limit is a number, or `none` to lift it.
Jobs = Annotated[str | None, typer.Option("--jobs", help="Jobs queued and running at once; none: no limit.")]
Minutes = Annotated[str | None, typer.Option("--gpu-minutes", help="GPU minutes a month; none: no limit.")]
Bytes = Annotated[str | None, typer.Option("--bytes", help="Bytes stored; none: no limit.")]
Requests = Annotated[str | None, typer.Option("--requests", help="Requests a minute; none: no limit.")]


@app.callback()
def projects(context: typer.Context, json: JsonFlag = False) -> None:
    if context.invoked_subcommand is None:
        _list(json)


@app.command(name="list")
def list_all(json: JsonFlag = False) -> None:
    """List projects with their limits."""
    _list(json)


@app.command()
def create(
    project: Id,
    *,
    name: Annotated[str, typer.Option(help="What it is called in full.")] = "",
    jobs: Jobs = None,
    gpu_minutes: Minutes = None,
    bytes: Bytes = None,
    requests: Requests = None,
    json: JsonFlag = False,
) -> None:
    """Make a project; `lathe keys create --project PROJECT NAME` lets somebody in."""
    body = {"id": project, "name": name, **_limits(jobs, gpu_minutes, bytes, requests)}
    with connect() as client:
        _show(client.post("/v1/projects", body), json)


@app.command()
def show(project: Id, json: JsonFlag = False) -> None:
    """Show a project's limits, and what it uses."""
    with connect() as client:
        _show_with_usage(client, project, json)


@app.command()
def quota(
    project: Id,
    *,
    jobs: Jobs = None,
    gpu_minutes: Minutes = None,
    bytes: Bytes = None,
    requests: Requests = None,
    json: JsonFlag = False,
) -> None:
    """Set a project's limits, and show them with what it uses."""
    changes = _limits(jobs, gpu_minutes, bytes, requests)
    with connect() as client:
        if changes:
            client.post(_path(project), changes)
        _show_with_usage(client, project, json)


@app.command()
def archive(project: Id, json: JsonFlag = False) -> None:
    """Refuse a project's keys; all that is its own stays."""
    with connect() as client:
        _show(client.post(f"{_path(project)}/archive"), json)


@app.command()
def restore(project: Id, json: JsonFlag = False) -> None:
    """Let an archived project's keys in again."""
    with connect() as client:
        _show(client.post(f"{_path(project)}/restore"), json)


def _path(project: str) -> str:
    return f"/v1/projects/{segment(project)}"


def _limits(*values: str | None) -> JSON:
    """What was given of the limits, in the order of `LIMITS`.

    Raises:
        InvalidInput: one is neither a number nor `none`.
    """
    given: JSON = {}
    for (field, noun), value in zip(LIMITS.items(), values, strict=True):
        if value is None:
            continue
        if value != "none" and not value.isdecimal():
            raise InvalidInput(f"{value!r} is no number of {noun}: give one, or none for no limit.")
        given[field] = None if value == "none" else int(value)
    return given


def _list(json: bool) -> None:
    with connect() as client:
        rows = list(client.pages("/v1/projects"))
    if json:
        print_json(rows)
        return
    made = table("Project", "Name", "Status", *(noun.capitalize() for noun in LIMITS.values()))
    for row in rows:
        made.add_row(
            row["id"], harmless(row["name"]), row["status"], *(_limit(row, field) for field in LIMITS)
        )
    stdout().print(made)


def _limit(row: JSON, field: str) -> str:
    value = row[field]
    if value is None:
        return "–"
    return size(value) if field == "max_bytes" else str(value)


def _show(row: JSON, json: bool) -> None:
    if json:
        print_json(row)
        return
    limits = [f"{_limit(row, field)} {noun}" for field, noun in LIMITS.items() if row[field] is not None]
    stdout().print(
        f"{row['id']} is {row['status']}; limits: {', '.join(limits) or 'none'}.",
        markup=False,
        soft_wrap=True,
    )


def _show_with_usage(client: Client, project: str, json: bool) -> None:
    row = client.get(_path(project))
    _show(row, json)
    if not json:
        used = row["usage"]
        stdout().print(
            f"It uses {used['jobs']} jobs at once, {used['gpu_minutes']:g} GPU minutes of this month, "
            f"{size(used['bytes'])}.",
            soft_wrap=True,
        )
