"""`lathe keys`: who may ask. It works on the database of this machine itself: it takes no key to make one.

What needs the database is imported when it runs: every other command starts without it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.output import JsonFlag, print_json, stderr, stdout
from cli.tables import keep_whole, table
from cli.text import harmless, moment
from db.errors import Conflict
from db.keys import USUAL_SCOPES, Scope
from db.settings import load_settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from db.models import ApiKey

JSON = dict[str, Any]
ProjectOption = Annotated[str, typer.Option("--project", "-p", help="The project that it is for.")]

app = typer.Typer(
    help="List API keys; `lathe keys create NAME` makes one, in the database of this machine.",
    invoke_without_command=True,
)


@app.callback()
def keys(
    context: typer.Context,
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only keys of this one.")] = None,
    json: JsonFlag = False,
) -> None:
    if context.invoked_subcommand is None:
        _list(project, json)


@app.command(name="list")
def list_all(
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only keys of this one.")] = None,
    json: JsonFlag = False,
) -> None:
    """List API keys, newest first, with what each lets do and when it was last used."""
    _list(project, json)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, in a few words.", show_default=False)],
    *,
    project: ProjectOption = "default",
    scope: Annotated[
        list[Scope], typer.Option("--scope", "-s", help="What it lets do; may be given several times.")
    ] = list(USUAL_SCOPES),  # noqa: B006 - typer reads it, nobody changes it
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="After how many days it ends; else never.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make an API key. It is shown now, and never again."""
    from db.queries.keys import create_key, has_keys
    from db.queries.projects import get_project

    expires_at = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    with _database() as session:
        if get_project(session, project).archived_at is not None:
            raise Conflict(f"The project {project!r} is archived: `lathe projects restore {project}` first.")
        is_first = not has_keys(session)
        key, secret = create_key(session, project_id=project, name=name, scopes=scope, expires_at=expires_at)
        _note(session, key, "create_api_key")
    if json:
        print_json({**_shown(key), "key": secret})
    else:
        print(secret)
        stderr().print("Keep it: it is not shown again.", style="dim")
    if is_first and not load_settings().api_key.get_secret_value():
        stderr().print(
            "It is the first: from now on every request needs a key. Commands take theirs from "
            "LATHE_API_KEY; `lathe keys create --scope admin NAME` makes one for you.",
            style="yellow",
        )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id: key-….", show_default=False)],
    json: JsonFlag = False,
) -> None:
    """Revoke an API key for good; within 5 s it is refused."""
    from db.queries.keys import get_key, revoke_key

    with _database() as session:
        key = get_key(session, key_id, project_id=None, lock=True)
        revoke_key(session, key)
        _note(session, key, "revoke_api_key")
    if json:
        print_json(_shown(key))
    else:
        stdout().print(f"{key.id} is revoked.", markup=False)


@contextmanager
def _database() -> Iterator["Session"]:
    """A transaction on the database of this machine, whether Lathe runs or not."""
    from db.session import make_engine, make_session_factory, transaction
    from deploy.local.database import reach

    with reach(load_settings()) as url:
        engine = make_engine(url)
        try:
            with transaction(make_session_factory(engine)) as session:
                yield session
        finally:
            engine.dispose()


def _note(session: "Session", key: "ApiKey", action: str) -> None:
    """The audit log knows of it too."""
    from db.models import AuditEntry

    told = {"action": action, "method": "", "path": "lathe keys", "status": 200, "request_id": "", "times": 1}
    session.add(AuditEntry(project_id=key.project_id, target=key.id, **told))


def _list(project: str | None, json: bool) -> None:
    from db.queries.keys import list_keys

    with _database() as session:
        rows = [_shown(key) for key in list_keys(session, project_id=project, limit=10_000)[0]]
    if json:
        print_json(rows)
        return
    made = table("Key, and how it begins", "Name", "Project", "Scopes", "Status", "Last used")
    keep_whole(made, 0, 4)
    for row in rows:
        used = moment(row["last_used_at"]) if row["last_used_at"] else "never"
        names, scopes = f"{row['id']}\n{row['prefix']}…", ", ".join(row["scopes"])
        made.add_row(names, harmless(row["name"]), row["project"], scopes, row["status"], used)
    stdout().print(made if rows else "There are no API keys yet: `lathe keys create NAME` makes one.")


def _shown(key: "ApiKey") -> JSON:
    """As the API shows it."""
    times = {
        name: int(value.timestamp()) if (value := getattr(key, name)) is not None else None
        for name in ("created_at", "expires_at", "revoked_at", "last_used_at")
    }
    status = "revoked" if key.revoked_at else "active"
    if not key.revoked_at and times["expires_at"] is not None and times["expires_at"] <= time.time():
        status = "expired"
    return {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "project": key.project_id,
        "prefix": key.prefix,
        "scopes": key.scopes,
        "status": status,
        **times,
    }
