"""`lathe webhooks`: who is told when jobs end, and what came of it."""

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.client import Client, connect, segment
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.tables import keep_whole, table
from cli.text import harmless, moment
from db.webhook_events import DeliveryStatus, EventType

JSON = dict[str, Any]
PATH = "/v1/webhook_endpoints"
STYLES = {DeliveryStatus.SUCCEEDED: "green", DeliveryStatus.FAILED: "red"}
ALL_JOBS = [EventType.JOB_SUCCEEDED, EventType.JOB_FAILED, EventType.JOB_CANCELLED]

app = typer.Typer(
    help="List webhook endpoints: who is told when jobs end. Create, test and delete them.",
    invoke_without_command=True,
)
Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Its id.", show_default=False)]


@app.callback()
def webhooks(context: typer.Context, json: JsonFlag = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        rows = list(client.pages(PATH))
    if json:
        print_json(rows)
        return
    if not rows:
        stdout().print("There are no endpoints yet: `lathe webhooks create URL` makes one.")
        return
    made = table("Endpoint", "Name", "URL", "Told of")
    keep_whole(made, 0)
    for row in rows:
        made.add_row(row["id"], harmless(row["name"]), harmless(row["url"]), ", ".join(row["event_types"]))
    stdout().print(made)


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to post to.", show_default=False)],
    *,
    name: Annotated[str, typer.Option(help="What it is called.")] = "webhook",
    event: Annotated[
        list[EventType], typer.Option("--event", "-e", help="What to tell of; may be given several times.")
    ] = ALL_JOBS,
    json: JsonFlag = False,
) -> None:
    """Have an address told of jobs that end. Its signing secret is shown now, and never again.

    $ lathe webhooks create https://hooks.example.com/lathe --event job.failed
    """
    with connect() as client:
        made = client.post(PATH, {"name": name, "url": url, "event_types": [each.value for each in event]})
    if json:
        print_json(made)
        return
    stdout().print(f"{made['id']}\n{made['signing_secret']}", markup=False, soft_wrap=True)
    stderr().print("Keep the secret: it is not shown again.", style="dim")


@app.command("test")
def send_sample(
    endpoint: Endpoint,
    event: Annotated[EventType, typer.Option("--event", "-e", help="Of which type.")] = ALL_JOBS[0],
    json: JsonFlag = False,
) -> None:
    """Send a sample event now, and say what the receiver answered."""
    with connect() as client:
        told = client.post(f"{_path(endpoint)}/test", {"event_type": event.value})
    if json:
        print_json(told)
    else:
        stdout().print(f"{event.value} was taken: {told['status_code']}.", markup=False)


@app.command()
def delete(
    endpoint: Endpoint,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete an endpoint with its deliveries."""
    if not yes and not json and sys.stdin.isatty():
        typer.confirm(f"Delete {endpoint} with its deliveries?", abort=True)
    with connect() as client:
        gone = client.delete(_path(endpoint))
    if json:
        print_json(gone)
    else:
        stdout().print(f"{gone['id']} is deleted.", markup=False)


@app.command()
def deliveries(
    of: Annotated[
        str, typer.Argument(metavar="ENDPOINT|JOB", help="Of an endpoint, or of a job-….", show_default=False)
    ],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 20,
    json: JsonFlag = False,
) -> None:
    """List what was told, try by try."""
    whose = f"/v1/jobs/{segment(of)}" if of.startswith("job-") else _path(of)
    with connect() as client:
        rows = list(client.pages(f"{whose}/deliveries", limit=limit))
    if json:
        print_json(rows)
        return
    if not rows:
        stdout().print("Nothing was to be told yet.")
        return
    made = table("Delivery", "Event", "Status", "Try", "Answer")
    keep_whole(made, 1, 2, 3, 4)
    for row in rows:
        status = Text(row["status"], STYLES.get(row["status"], ""))
        made.add_row(row["id"], row["event_type"], status, str(len(row["tries"])), _last_answer(row))
    stdout().print(made)


@app.command()
def redeliver(
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="Its id.", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Send a delivery again, under the same `webhook-id`."""
    with connect() as client:
        row = client.post(f"/v1/webhook_deliveries/{segment(delivery)}/redeliver")
    if json:
        print_json(row)
    else:
        stdout().print(f"{row['id']} is {row['status']}.", markup=False)


@app.command()
def secret(
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make a new one: the old one lasts a day.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Read what jobs' --webhook-url is signed with. It is shown once; --rotate makes another."""
    with connect() as client:
        shown = _secret(client, rotate)
    if json:
        print_json(shown)
    else:
        stdout().print(shown["signing_secret"], markup=False, soft_wrap=True)


def _secret(client: Client, rotate: bool) -> JSON:
    return client.post(f"/v1/webhook_secret/{'rotate_secret' if rotate else 'read'}")


def _path(endpoint: str) -> str:
    return f"{PATH}/{segment(endpoint)}"


def _last_answer(row: JSON) -> str:
    last = row["tries"][-1] if row["tries"] else None
    if last is None:
        return f"not before {moment(row['next_attempt_at'])}" if row["next_attempt_at"] else ""
    return harmless(last["error"] or str(last["status_code"] or "under way"))
