"""`lathe gc`, `lathe backup` and `lathe restore`: what touches the data folder of this machine.

What they need of the database is imported when they run: every other command starts without it.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.client import connect
from cli.output import JsonFlag, print_json, stdout
from cli.tables import keep_whole, table
from cli.text import harmless, size
from db.errors import Conflict, InvalidInput, LatheError
from db.settings import load_settings

if TYPE_CHECKING:
    from deploy.local.gc import Collected

JSON = dict[str, Any]
SHOWN = 40


def gc(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only list what would be removed.")
    ] = False,
    models: Annotated[
        bool, typer.Option("--models", help="Also delete every published model, with what serves it.")
    ] = False,
    older_than: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", min=0, max=36_500, help="Also jobs that ended longer ago; their models stay."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Remove what has aged out and what was left behind: what workers do by and by, at once.

    Safe while Lathe runs. What is kept for how long is settings: LATHE_KEEP_JOBS_DAYS, ….
    """
    from deploy.local.gc import Collected, collect

    settings = load_settings()
    if older_than is not None:
        settings = settings.model_copy(update={"keep_jobs_days": older_than})
    if not dry_run and (models or older_than is not None):
        _confirm(models, older_than, yes=yes)
    collected = Collected()
    if models:
        _collect_models(collected, dry_run=dry_run)
    with _told_in_short():
        rest = collect(settings, dry_run=dry_run)
    collected.removed += rest.removed
    collected.kept += rest.kept
    if json:
        print_json(_document(collected, dry_run=dry_run))
    else:
        _print_collected(collected, dry_run=dry_run)


def backup(
    target: Annotated[
        Path, typer.Argument(help="A folder that is made, or a .tar, .tar.gz or .tgz.", show_default=False)
    ],
    json: JsonFlag = False,
) -> None:
    """Write the database, all files and the passwords to one place, also while Lathe runs."""
    from deploy.local.backup import back_up

    with _told_in_short():
        made = back_up(load_settings(), target)
    if json:
        print_json(asdict(made))
        return
    console = stdout()
    console.print(
        f"{target}: {made.jobs} jobs, {made.models} models, {made.files} files, {size(made.bytes)}.",
        markup=False,
        soft_wrap=True,
    )
    if made.missing:
        shown = "\n".join(f"  {path}" for path in made.missing[:SHOWN])
        console.print(f"Not there, though rows name it:\n{shown}", style="yellow", markup=False)
    if not made.linked:
        text = "The storage folder cannot be linked from the data folder: its files were copied twice."
        console.print(text, style="yellow")
    console.print("It holds the passwords of the local servers: keep it to yourself.", style="dim")


def restore(
    source: Annotated[Path, typer.Argument(help="What `lathe backup` wrote.", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Make an empty data folder (LATHE_DATA_DIR) from a backup; `lathe up` then goes on from it."""
    from deploy.local.restore import restore_from

    settings = load_settings()
    with _told_in_short():
        made = restore_from(settings, source)
    if json:
        print_json(asdict(made))
        return
    text = (
        f"{settings.data_dir}: {made.jobs} jobs, {made.models} models, {made.files} files. Go on:  lathe up"
    )
    stdout().print(text, markup=False, soft_wrap=True)


@contextmanager
def _told_in_short() -> Iterator[None]:
    """What the system refuses, such as a folder of another user, in one line."""
    try:
        yield
    except OSError as error:
        raise LatheError(f"{error.strerror}: {error.filename}") from None


def _confirm(models: bool, older_than: float | None, *, yes: bool) -> None:
    if yes:
        return
    what = [
        *(["every published model"] if models else []),
        *([f"every job that ended more than {older_than:g} days ago"] if older_than is not None else []),
    ]
    if not sys.stdin.isatty():
        raise InvalidInput(f"This deletes {' and '.join(what)}: say --yes, or look first with --dry-run.")
    typer.confirm(f"Delete {' and '.join(what)}?", abort=True)


def _collect_models(collected: "Collected", *, dry_run: bool) -> None:
    """Delete all that was published, by the API, which knows what is in use. Names of the catalogue stay."""
    from retention import Expired

    with connect() as client:
        for row in client.models():
            if not row["versions"]:
                continue
            files = [file for version in row["versions"] for file in version["quantizations"]]
            backends = ", ".join(sorted({file["backend"] for file in files}))
            versions, held = len(row["versions"]), sum(file["bytes"] for file in files)
            item = Expired("model", row["id"], f"published on {backends}", held, versions)
            try:
                if not dry_run:
                    client.delete_model(row["id"])
                collected.removed.append(item)
            except Conflict as error:
                collected.kept.append((item, error.message))


def _document(collected: "Collected", *, dry_run: bool) -> JSON:
    return {
        "dry_run": dry_run,
        "removed": [asdict(item) for item in collected.removed],
        "kept": [{**asdict(item), "reason": reason} for item, reason in collected.kept],
        "bytes": collected.bytes,
    }


def _print_collected(collected: "Collected", *, dry_run: bool) -> None:
    console = stdout()
    if collected.removed:
        made = table("What", "Which", "Size", "Why", right=("Size",))
        keep_whole(made, 1)
        for item in collected.removed[:SHOWN]:
            made.add_row(
                item.kind, harmless(item.id), size(item.bytes) if item.bytes else "", harmless(item.why)
            )
        console.print(made)
        if len(collected.removed) > SHOWN:
            counts = Counter(item.kind for item in collected.removed[SHOWN:])
            more = ", ".join(f"{count} × {kind}" for kind, count in counts.items())
            console.print(f"… and {more}: --json has them all", style="dim")
    for item, reason in collected.kept:
        console.print(Text(f"kept: {item.kind} {harmless(item.id)}: {harmless(reason)}", "yellow"))
    verb = "would be removed" if dry_run else "removed"
    console.print(f"{len(collected.removed)} {verb}, {size(collected.bytes)} at least.", markup=False)
