"""The verbs that touch this machine: `lathe up | down | status | logs | doctor`."""

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.text import duration, size
from db.errors import InvalidInput, LatheError
from db.settings import Settings, load_settings
from deploy.local import doctor as examination
from deploy.local import logs as log_files
from deploy.local import report, stack

NOT_RUNNING = 3
INTERRUPTED = 130
STATE_STYLES = {"ready": "green", "external": "green", "starting": "cyan"}
FINDING_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
FINDING_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
PANEL = "This machine"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the `lathe` command."""
    for verb in (up, down, status, logs, doctor):
        app.command(rich_help_panel=PANEL)(verb)


def up(
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Return when everything is ready; `lathe down` stops it.")
    ] = False,
) -> None:
    """Start everything: API, workers, Flower, Postgres, Valkey and the model servers.

    A server whose address is set (DATABASE_URL, REDIS_URL, OLLAMA_HOST, LATHE_CHAT_SERVER_URL,
    LATHE_EMBEDDING_SERVER_URL) is used in place of our own.
    """
    settings = _settings()
    if not detach:
        # In this process's place: the supervisor needs none of what the command line has loaded.
        sys.stdout.flush()
        os.execv(sys.executable, stack.foreground_argv())  # noqa: S606 - no shell is what we want
    try:
        code = stack.start(settings, report.for_terminal())
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        code = _failed(f"{error.strerror}: {error.filename}")
    raise typer.Exit(code)


def down() -> None:
    """Stop what `lathe up` started, in order; running steps are given 30 s to put their work down."""
    settings = _settings()
    try:
        stopped = stack.stop(settings)
    except LatheError as error:
        raise typer.Exit(_failed(error.message)) from None
    typer.echo("stopped" if stopped else f"nothing runs on {settings.data_dir}")


def status(as_json: AsJson = False) -> None:
    """Show every part: its process, whether it answers, and its memory.

    Exit code: 0 when all is well, 1 when a part is not, 3 when nothing runs.
    """
    settings = _settings()
    found = stack.describe(settings)
    if as_json:
        typer.echo(json.dumps(found or {"running": False, "data_dir": str(settings.data_dir)}, indent=2))
    elif found is None:
        typer.echo(f"nothing runs on {settings.data_dir}")
    else:
        _print_status(found)
    raise typer.Exit(NOT_RUNNING if found is None else 0 if found["ready"] else 1)


def logs(
    part: Annotated[str | None, typer.Argument(help="One part's log: api, worker, postgres, …")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing what is added.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many lines to begin with.")] = 20,
) -> None:
    """Print the ends of the parts' logs."""
    folder = log_files.folder(_settings().data_dir)
    found = sorted(folder.glob("*.log"))
    paths = [path for path in found if part in (None, path.stem)]
    if not paths:
        known = ", ".join(path.stem for path in found)
        what = f"no log of {part!r} in {folder}" if part else f"no logs in {folder}"
        raise typer.Exit(_failed(what + (f"; there are {known}" if known else "")))
    width = 0 if part else max(len(path.stem) for path in paths)
    for path in paths:
        for line in log_files.tail(path, lines):
            _print_line(path.stem, line, width)
    if follow:
        try:
            for name, line in log_files.follow(paths):
                _print_line(name, line, width)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def doctor(as_json: AsJson = False) -> None:
    """Check whether this machine has what Lathe needs, and say how to mend what it has not.

    Exit code: 1 when a check fails.
    """
    findings = examination.examine(_settings())
    ok = all(finding.status != "fail" for finding in findings)
    if as_json:
        rows = [vars(finding) for finding in findings]
        typer.echo(json.dumps({"ok": ok, "checks": rows}, indent=2))
    else:
        _print_findings(findings)
    raise typer.Exit(0 if ok else 1)


# --- how it looks -----------------------------------------------------------------------------------


def _settings() -> Settings:
    try:
        return load_settings()
    except InvalidInput as error:
        raise typer.Exit(_failed(error.message)) from None


def _failed(message: str) -> int:
    typer.echo(f"lathe: {message}", err=True)
    return 1


def _print_line(name: str, line: str, width: int) -> None:
    typer.echo(f"{name:<{width}} | {line}" if width else line)


def _print_status(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
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
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for overflow in ("ellipsis", "ellipsis", "fold"):
        table.add_column(overflow=overflow)  # type: ignore[arg-type]
    for finding in findings:
        mark = FINDING_MARKS[finding.status] if not console.options.ascii_only else finding.status
        message = Text(finding.message)
        if finding.fix:
            message.append(f"\n{finding.fix}", "bold")
        table.add_row(Text(mark, FINDING_STYLES[finding.status]), Text(finding.check), message)
    console.print(table)
