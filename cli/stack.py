"""The verbs that touch this machine: `lathe up | down | status | logs | doctor`."""

import os
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cli.data import backup, gc, restore
from cli.output import ExitStatus, JsonFlag, print_json, stdout
from cli.text import duration, harmless, size
from db.errors import LatheError, NotFound
from db.settings import child_environment, load_settings
from deploy.local import doctor as examination
from deploy.local import logs as log_files
from deploy.local import report, stack

STATE_STYLES = {"ready": "green", "external": "green", "starting": "cyan"}
FINDING_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
FINDING_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
PANEL = "This machine"


def register(app: typer.Typer) -> None:
    """Add the verbs to the `lathe` command."""
    for verb in (up, down, status, logs, doctor, gc, backup, restore):
        app.command(rich_help_panel=PANEL)(verb)


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when everything is ready; `lathe down` stops it.")
    ] = False,
    gpus: Annotated[
        str | None,
        typer.Option(help="A worker for each of these GPUs: all, or 0,1, or UUIDs; 0+1: one for both."),
    ] = None,
) -> None:
    """Start everything: API, workers, Flower, Postgres, Valkey and the model servers.

    LATHE_DATA_DIR is the folder of all that is kept (~/.local/share/lathe); LATHE_API_PORT (8000)
    and LATHE_FLOWER_PORT (5555) are the ports. Another folder and other ports: a second Lathe.

    Servers of your own, used in place of ours, are named by DATABASE_URL,
    REDIS_URL, OLLAMA_HOST, LATHE_CHAT_SERVER_URL and LATHE_EMBEDDING_SERVER_URL.
    """
    settings = load_settings()
    changes = {"LATHE_GPUS": gpus} if gpus is not None else {}
    if not detach:
        # In this process's place: the supervisor needs none of what the command line has loaded.
        sys.stdout.flush()
        argv, environment = stack.foreground_argv(), child_environment(changes)
        os.execve(sys.executable, argv, environment)  # noqa: S606 - no shell is what we want
    try:
        code = stack.start(settings, report.for_terminal(), changes=changes)
    except KeyboardInterrupt:
        code = ExitStatus.INTERRUPTED
    except OSError as error:
        raise LatheError(f"{error.strerror}: {error.filename}") from None
    raise typer.Exit(code)


def down() -> None:
    """Stop what `lathe up` started, in order; running steps are given 30 s to put their work down."""
    settings = load_settings()
    stopped = stack.stop(settings)
    stdout().print("stopped" if stopped else f"nothing runs on {settings.data_dir}", soft_wrap=True)


def status(json: JsonFlag = False) -> None:
    """Show every part: its process, whether it answers, and its memory.

    Exit code: 0 when all is well, 1 when a part is not, 3 when nothing runs.
    """
    settings = load_settings()
    found = stack.describe(settings)
    if json:
        print_json(found or {"running": False, "data_dir": str(settings.data_dir)})
    elif found is None:
        stdout().print(f"nothing runs on {settings.data_dir}", soft_wrap=True)
    else:
        _print_status(found)
    if found is None:
        raise typer.Exit(ExitStatus.UNREACHABLE)
    raise typer.Exit(ExitStatus.OK if found["ready"] else ExitStatus.FAILED)


def logs(
    part: Annotated[str | None, typer.Argument(help="One part's log: api, worker, postgres, …")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines to begin with.")] = 20,
) -> None:
    """Print the ends of the parts' logs."""
    folder = log_files.folder(load_settings().data_dir)
    found = sorted(folder.glob("*.log"))
    paths = [path for path in found if part in (None, path.stem)]
    if not paths:
        known = ", ".join(path.stem for path in found)
        what = f"no log of {part!r} in {folder}" if part else f"no logs in {folder}"
        raise NotFound(what + (f"; there are {known}" if known else "") + ".")
    width = 0 if part else max(len(path.stem) for path in paths)
    for path in paths:
        for line in log_files.tail(path, lines):
            _print_line(path.stem, line, width)
    if follow:
        try:
            for name, line in log_files.follow(paths):
                _print_line(name, line, width)
        except KeyboardInterrupt:
            raise typer.Exit(ExitStatus.OK) from None


def doctor(json: JsonFlag = False) -> None:
    """Check whether this machine has what Lathe needs, and say how to mend what it has not.

    Exit code: 1 when a check fails.
    """
    findings = examination.examine(load_settings())
    ok = all(finding.status != "fail" for finding in findings)
    if json:
        print_json({"ok": ok, "checks": [asdict(finding) for finding in findings]})
    else:
        _print_findings(findings)
    raise typer.Exit(ExitStatus.OK if ok else ExitStatus.FAILED)


# --- how it looks -----------------------------------------------------------------------------------


def _print_line(name: str, line: str, width: int) -> None:
    typer.echo(f"{name:<{width}} | {harmless(line)}" if width else harmless(line))


def _print_status(found: dict[str, Any]) -> None:
    console = stdout()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("part", "state", "pid", "address", "up", "restarts", "memory"):
        table.add_column(
            heading, justify="right" if heading in ("pid", "up", "restarts", "memory") else "left"
        )
    total = 0
    for part in found["parts"]:
        memory = part["pss_bytes"] or part["rss_bytes"] or 0
        total += memory
        well = part["health"] == "ok"
        table.add_row(
            part["name"],
            Text(part["state"], STATE_STYLES.get(part["state"], "yellow") if well else "red"),
            str(part["pid"] or ""),
            part["address"] or "",
            duration(part["uptime_seconds"]) if part["uptime_seconds"] is not None else "",
            str(part["restarts"] or ""),
            size(memory) if memory else "",
        )
        if not well:
            table.add_row("", Text(part["health"], "red"))
    console.print(table)
    console.print(f"\nmemory  {size(total)} in all", style="dim")
    console.print(f"API     {found['api_url']}", soft_wrap=True)
    login = f"user {found['flower_user']}, password {found['flower_password']}"
    console.print(f"Flower  {found['flower_url']}  {login}", soft_wrap=True, markup=False)
    console.print(f"data    {found['data_dir']}", soft_wrap=True, markup=False)


def _print_findings(findings: list[examination.Finding]) -> None:
    console = stdout()
    table = Table(box=None, pad_edge=False, show_header=False)
    for overflow in ("ellipsis", "ellipsis", "fold"):
        table.add_column(overflow=overflow)
    for finding in findings:
        mark = FINDING_MARKS[finding.status] if not console.options.ascii_only else finding.status
        message = Text(finding.message)
        if finding.fix:
            message.append(f"\n{finding.fix}", "bold")
        table.add_row(Text(mark, FINDING_STYLES[finding.status]), Text(finding.check), message)
    console.print(table)
