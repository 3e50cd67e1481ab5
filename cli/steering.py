"""`lathe cancel`, `pause`, `resume`, `retry`, `delete` and `clone`: what becomes of a job that exists."""

from typing import Annotated, Any

import typer

from cli.client import Client, connect
from cli.flags import flags_of, read_values
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.render import STYLES
from cli.submit import (
    OtherMaxAttempts,
    OtherMaxRuntime,
    OtherPriority,
    RunJson,
    WatchFlag,
    WebhookUrl,
    show_submitted,
    upload,
)
from cli.watching import JobId
from db.kinds import PARAMS

JSON = dict[str, Any]


def cancel(job_id: JobId, json: JsonFlag = False) -> None:
    """Stop a job. What its finished steps made stays, for `lathe retry`; of a running one nothing does."""
    with connect() as client:
        _print_state(client.steer(job_id, "cancel"), json)


def pause(job_id: JobId, json: JsonFlag = False) -> None:
    """Put a job aside: a running step saves what it has, and its worker is free."""
    with connect() as client:
        _print_state(client.steer(job_id, "pause"), json)


def resume(job_id: JobId, json: JsonFlag = False) -> None:
    """Let a paused job go on from its last checkpoint."""
    with connect() as client:
        _print_state(client.steer(job_id, "resume"), json)


def retry(job_id: JobId, *, max_runtime: OtherMaxRuntime = None, json: JsonFlag = False) -> None:
    """Let a failed or cancelled job go on from its first unfinished step."""
    with connect() as client:
        _print_state(client.steer(job_id, "retry", **_limit(max_runtime)), json)


def delete(job_id: JobId, json: JsonFlag = False) -> None:
    """Delete a job that has ended, with all its files. Models that it published stay."""
    with connect() as client:
        gone = client.delete_job(job_id)
    if json:
        print_json(gone)
    else:
        stdout().print(f"{job_id} deleted")


def clone(
    job_id: JobId,
    *,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="NAME=VALUE", help="Another value for a parameter; of a file, a path."
        ),
    ] = None,
    watch: WatchFlag = False,
    max_attempts: OtherMaxAttempts = None,
    max_runtime: OtherMaxRuntime = None,
    priority: OtherPriority = None,
    webhook_url: WebhookUrl = None,
    json: RunJson = False,
) -> None:
    """Submit a job again, with some of its parameters changed. What is not given stays as it is in that job.

    $ lathe clone job-… --set learning_rate=1e-4 --set name=faq2 --watch
    """
    fields = {"max_attempts": max_attempts, "priority": priority, "webhook_url": webhook_url}
    given = {name: value for name, value in fields.items() if value is not None} | _limit(max_runtime)
    with connect() as client:
        params = _changed_params(client, client.job(job_id)["kind"], changes or [])
        made = client.steer(job_id, "clone", params=params, **given)
        show_submitted(client, made, watch=watch, json=json)


def _limit(max_runtime: int | None) -> JSON:
    return {} if max_runtime is None else {"max_runtime_seconds": max_runtime or None}


def _changed_params(client: Client, kind: str, changes: list[str]) -> JSON:
    """Read `learning_rate=1e-4`; a name that the kind does not have is the server's to refuse."""
    model = PARAMS[kind]
    flags = flags_of(model)
    params: JSON = {}
    for change in changes:
        name, equals, value = change.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise typer.BadParameter(f"{change!r} is not NAME=VALUE.", param_hint="--set")
        if value == "null" or name not in flags:
            params[name] = None if value == "null" else value
            continue
        typed: Any = [value] if flags[name].many else value
        try:
            params |= read_values(model, {name: typed})
        except typer.BadParameter as bad:
            raise typer.BadParameter(f"{name}: {bad.message}", param_hint="--set") from None
        if flags[name].is_file:
            params[name] = upload(client, value, stderr())
    return params


def _print_state(row: JSON, json: bool) -> None:
    if json:
        print_json(row)
    else:
        stdout().print(f"{row['id']} [{STYLES[row['status']]}]{row['status']}[/]")
