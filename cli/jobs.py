"""`lathe jobs`, `lathe job` and `lathe checkpoints`."""

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import connect
from cli.output import JsonFlag, print_json, stdout
from cli.render import LEVEL_STYLES, STYLES
from cli.tables import keep_whole, table
from cli.text import duration, figure, harmless, moment, size
from cli.track import WAITING, elapsed
from cli.watching import JobId
from db.states import JobKind, JobStatus

JSON = dict[str, Any]
EVENTS_SHOWN = 20
# The columns that ids, names and times take together.
WIDE = 100


def jobs(
    kind: Annotated[JobKind | None, typer.Option(help="Only jobs of this kind.")] = None,
    status: Annotated[
        JobStatus | None,
        typer.Option(metavar="STATE", help=f"Only jobs in this state: {', '.join(JobStatus)}."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 20,
    json: JsonFlag = False,
) -> None:
    """List jobs."""
    with connect() as client:
        rows = list(client.jobs(kind=kind and kind.value, status=status and status.value, limit=limit))
    if json:
        print_json(rows)
    elif not rows:
        stdout().print("There are no jobs" + (" like that." if kind or status else " yet."))
    else:
        console = stdout()
        console.print(_table_of_jobs(rows, is_narrow=console.width < WIDE))


def job(job_id: JobId, json: JsonFlag = False) -> None:
    """Show a job: its steps, parameters, events and artifacts."""
    with connect() as client:
        row = client.job(job_id)
        # A long training has measured thousands of values, which a person is not shown here.
        events = list(client.job_rows(job_id, "events", type=None if json else "message"))
        artifacts = list(client.job_rows(job_id, "artifacts"))
    if json:
        print_json({**row, "events": events, "artifacts": artifacts})
    else:
        _print_job(stdout(), row, events, artifacts)


def checkpoints(
    job_id: JobId,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 20,
    json: JsonFlag = False,
) -> None:
    """List a job's checkpoints: what can be exported and chatted with, and what it takes on the disk."""
    with connect() as client:
        rows = list(client.job_rows(job_id, "checkpoints", limit=limit))
    if json:
        print_json(rows)
    elif not rows:
        stdout().print("The job has no checkpoints.")
    else:
        _print_checkpoints(stdout(), rows)


def _print_checkpoints(console: Console, rows: list[JSON]) -> None:
    times = ("Written",) if console.width >= WIDE else ()
    by = "Reward" if any("reward" in row["metrics"] for row in rows) else "Loss"
    made = table("Checkpoint", "Step", by, "Size", *times, "Answers as", right=("Step", by, "Size"))
    keep_whole(made, 0, 1, 2, 3)
    for row in rows:
        measured = row["metrics"]
        value = measured.get(f"eval_{by.lower()}", measured.get(by.lower()))
        made.add_row(
            row["id"],
            f"{row['step_number']:,}",
            figure(value) if value is not None else "",
            size(row["bytes"]) if row["bytes"] is not None else "",
            *(moment(row["created_at"]) for _ in times),
            harmless(row["exported_as"] or ""),
        )
    console.print(made)
    total = sum(row["bytes"] or 0 for row in rows)
    console.print(f"{size(total)} in all. Export one:", style="dim")
    console.print(f"  lathe export {rows[0]['id']} --watch", style="dim", soft_wrap=True)


def _table_of_jobs(rows: list[JSON], *, is_narrow: bool) -> Table:
    made = table("Job", "Kind", "Name", "Status", "Step", *(() if is_narrow else ("Created", "Took")))
    keep_whole(made, 0, 1, 3, 4)
    now = time.time()
    for row in rows:
        times = () if is_narrow else (moment(row["created_at"]), elapsed(row, now))
        made.add_row(
            row["id"],
            row["kind"],
            harmless(str((row.get("params") or {}).get("name", ""))),
            Text(row["status"], STYLES[row["status"]]),
            _current_step(row),
            *times,
        )
    return made


def _current_step(row: JSON) -> str:
    for step in row["steps"]:
        if step["status"] in ("running", "failed"):
            progress = row.get("progress") or {}
            if step["status"] == "running" and progress.get("total"):
                return f"{step['name']} {100 * progress['done'] // progress['total']}%"
            return str(step["name"])
    return ""


def _print_job(console: Console, row: JSON, events: list[JSON], artifacts: list[JSON]) -> None:
    now = time.time()
    console.print(
        Text.assemble((row["id"], "bold"), f"  {row['kind']}  ", (row["status"], STYLES[row["status"]]))
    )
    facts = table("", "")
    facts.show_header = False
    for name, value in _facts(row, now):
        facts.add_row(Text(name, "dim"), Text(value))
    console.print(facts)
    console.print(_table_of_steps(row, now), "")
    _print_events(console, events)
    if artifacts:
        made = table("Artifact", "Size", "sha256", right=("Size",))
        for artifact in artifacts:
            made.add_row(artifact["name"], size(artifact["bytes"]), artifact["sha256"])
        console.print(made)
        console.print(f"Fetch them:  lathe download {row['id']}", style="dim")


def _facts(row: JSON, now: float) -> list[tuple[str, str]]:
    params = dict(row.get("params") or {})
    facts = [("created", moment(row["created_at"]))]
    if name := params.pop("name", None):
        facts.insert(0, ("name", harmless(str(name))))
    if row.get("started_at"):
        told = "ran for" if row["status"] in WAITING else "took" if row.get("finished_at") else "running for"
        facts.append((told, elapsed(row, now)))
    for name in ("waits_for", "cloned_from"):
        if row.get(name):
            facts.append((name.replace("_", " "), row[name]))
    if row.get("queue_position"):
        facts.append(("place in the line", str(row["queue_position"])))
    for name, told in (("estimated_start_at", "may start at"), ("estimated_finish_at", "may be done at")):
        if row.get(name):
            facts.append((told, moment(row[name])))
    if row.get("max_runtime_seconds"):
        facts.append(("may run for", duration(row["max_runtime_seconds"])))
    facts += [(name, _value(value)) for name, value in params.items() if _is_set(value)]
    for name, value in (row.get("result") or {}).items():
        if isinstance(value, str | int | float):
            facts.append((f"→ {name}", _value(value)))
    error = row.get("error")
    if error:
        facts.append(("error", harmless(str(error.get("message")))))
    return facts


def _is_set(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_set, value.values()))
    return value not in (None, "auto", [])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{harmless(str(key))}={_value(own)}" for key, own in value.items() if _is_set(own))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return figure(value)
    return harmless(str(value))


def _table_of_steps(row: JSON, now: float) -> Table:
    made = table("Step", "Queue", "Status", "Started", "Took", "Attempts", right=("Took",))
    for step in row["steps"]:
        made.add_row(
            step["name"],
            step["queue"],
            Text(step["status"], STYLES[step["status"]]),
            moment(step["started_at"]) if step.get("started_at") else "",
            elapsed(step, now),
            "\n".join(map(_attempt, step.get("attempts") or [])),
        )
    return made


def _attempt(attempt: JSON) -> str:
    """Write an attempt as `1 lost (signal 9), GPU 0` or `2 exhausted (out_of_memory)`."""
    ending = ""
    if attempt.get("signal"):
        ending = f" (signal {attempt['signal']})"
    elif attempt.get("exit_code"):
        ending = f" (exit {attempt['exit_code']})"
    elif attempt.get("error"):
        ending = f" ({attempt['error']['code']})"
    indexes = ", ".join(str(device["index"]) for device in attempt.get("devices") or [])
    on = f", GPU {indexes}" if indexes else ""
    return f"{attempt['number']} {attempt.get('outcome') or 'running'}{ending}{on}"


def _print_events(console: Console, events: list[JSON]) -> None:
    if len(events) > EVENTS_SHOWN:
        console.print(f"… {len(events) - EVENTS_SHOWN} earlier events: --json has them all", style="dim")
    for event in events[-EVENTS_SHOWN:]:
        step = f"{event['step']}: " if event.get("step") else ""
        console.print(
            Text.assemble(
                (f"{moment(event['created_at'])}  {step}", "dim"),
                (harmless(event["message"]).rstrip(), LEVEL_STYLES.get(event["level"], "")),
            )
        )
    if events:
        console.print()
