"""`lathe watch`: follow a job to its end, and say what came of it."""

from collections import deque
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from cli import completion
from cli.client import Client, connect
from cli.evaluation import print_evaluation
from cli.following import JsonLines, follow
from cli.output import ExitStatus, stderr, stdout
from cli.render import JobView
from cli.text import harmless
from db.errors import LatheError
from db.states import ASKING_KINDS, JobKind

JSON = dict[str, Any]
LOG_LINES = 15
LOG_PAGE = 1000

JobId = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="The job's id: job-…", show_default=False, autocompletion=completion.jobs
    ),
]


def watch(
    job_id: JobId,
    json: Annotated[bool, typer.Option("--json", help="Print the job and its events as JSON lines.")] = False,
) -> None:
    """Follow a job until it ends. Ctrl-C leaves; the job goes on."""
    with connect() as client:
        watch_job(client, job_id, json=json)


def watch_job(client: Client, job_id: str, *, json: bool = False, console: Console | None = None) -> None:
    """Follow a job on `console`, or else on stdout, and exit with what it came to.

    Raises:
        typer.Exit: FAILED unless the job succeeded; INTERRUPTED when its user left.
    """
    try:
        if json:
            job = follow(client, job_id, JsonLines())
        else:
            with JobView(console or stdout()) as view:
                job = follow(client, job_id, view)
    except KeyboardInterrupt:
        _say_goodbye(job_id, stderr())
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    if job["status"] == "succeeded":
        if not json:
            _print_result(job, console or stdout())
        return
    print_failure(client, job, stderr())
    raise typer.Exit(ExitStatus.FAILED)


def _say_goodbye(job_id: str, console: Console) -> None:
    console.print(f"\nThe job goes on. Come back:  lathe watch {job_id}\nStop it:    lathe cancel {job_id}")


def _print_result(job: JSON, console: Console) -> None:
    result = job.get("result") or {}
    if job["kind"] in ASKING_KINDS:
        console.print(
            f"{result['answered']} of {result['rows']} rows are answered, {result['failed']} failed."
        )
        console.print(f"The answers:  lathe download {job['id']}", style="dim")
        return
    if job["kind"] == JobKind.EVALUATE:
        print_evaluation(result, console)
        console.print(f"Every answer:  lathe download {job['id']}", style="dim")
        return
    if not result.get("model"):
        return
    version = f"@{result['version']}" if result.get("version") else ""
    if not result.get("quantizations"):
        console.print(
            f"[green]{result['model']}{version}[/] is there:  lathe fine-tune --base {result['model']} …"
        )
        console.print(f"Its files:  lathe download {job['id']}", style="dim")
        return
    console.print(f"[green]{result['model']}{version}[/] answers:  lathe chat {result['model']}")
    console.print(f"Its files:  lathe download {job['id']}", style="dim")


def print_failure(client: Client, job: JSON, console: Console) -> None:
    if job["status"] == "cancelled":
        console.print(f"{job['id']} was cancelled.")
        return
    error = job.get("error") or {}
    message = str(error.get("message") or "no reason given")
    param = error.get("param") or ""
    meant = f" ({param})" if param.lower() not in message.lower() else ""
    console.print(Text.assemble(("Failed: ", "bold red"), harmless(message), meant), soft_wrap=True)
    step = next((step["name"] for step in job["steps"] if step["status"] == "failed"), None)
    if step and error.get("code") != "max_runtime_exceeded":  # that is not for what the step printed
        _print_log(client, job["id"], step, console)


def _print_log(client: Client, job_id: str, step: str, console: Console) -> None:
    try:
        rows = deque(client.job_rows(job_id, "logs", step=step, page_size=LOG_PAGE), maxlen=LOG_LINES)
    except LatheError:
        return  # the reason has been told already; the log is only more of it
    lines = [row["line"] for row in rows if row["attempt"] == rows[-1]["attempt"]]
    if lines:
        console.print(f"\nThe end of the log of {step}:", style="dim")
        for line in lines:
            console.print(Text(f"  {harmless(line)}", "dim"), soft_wrap=True)
