"""`lathe ingest`: documents into a collection. What is there already, and unchanged, is not even uploaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from cli import completion
from cli.client import Client, connect, model_path
from cli.output import ExitStatus, print_json, report, stderr, stdout
from cli.submit import RunJson, WatchFlag, show_submitted, upload
from cli.text import harmless
from db.disk import file_sha256
from db.errors import InvalidInput
from db.languages import LANGUAGES

JSON = dict[str, Any]
# The later, the more there is of a document: of several of the same content the last counts.
STATUSES = ("cancelled", "failed", "in_progress", "completed")


def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(help="PDF, DOCX, HTML, Markdown or plain text.", show_default=False),
    ],
    *,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection",
            "-c",
            help="Its name or id; a new name makes a new one.",
            show_default=False,
            autocompletion=completion.collections,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A model, whose own documents they become.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep older documents of the same file name beside the new ones.")
    ] = False,
    password: Annotated[str | None, typer.Option(help="Of encrypted PDFs.", show_default=False)] = None,
    language: Annotated[
        str | None,
        typer.Option(help="What they are in: german, or de. Default: detected.", show_default=False),
    ] = None,
    watch: WatchFlag = False,
    json: RunJson = False,
) -> None:
    """Read documents into a collection, where they can be searched, or make them a model's own.

    $ lathe ingest handbook.pdf notes/*.md --collection office --watch
    $ lathe ingest handbook.pdf --model faq
    """
    _check(files, keep)
    if bool(collection) == bool(model):
        raise InvalidInput("Say where to: --collection or --model, one of the two.", param="--collection")
    with connect() as client:
        place = _collection(client, collection) if collection else _own_documents(model or "")
        found = _compare(client, place, files, language)
        _tell(found, len(files))
        uploaded = _uploaded(client, found.new)
        if ids := found.unread + found.otherwise + uploaded:
            how = {"password": password, "language": language}
            wanted = [{"file_id": file_id, **how} for file_id in ids]
            batch = client.post(place.into(client), {"files": wanted, "replace": not keep})
            show_submitted(client, client.job(batch["id"]), watch=watch, json=json)
        elif found.jobs:
            show_submitted(client, client.job(found.jobs[0]), watch=watch, json=json)
        elif not found.new and json:
            print_json(client.get(place.path or ""))
        elif not found.new:
            stdout().print(f"[bold]{escape(harmless(place.name))}[/] is up to date.")
    if len(uploaded) < len(found.new):
        raise typer.Exit(ExitStatus.FAILED)


def _check(files: list[Path], keep: bool) -> None:
    """
    Raises:
        InvalidInput: one is no file, or two have the same name, by which documents are replaced.
    """
    by_name: dict[str, Path] = {}
    for path in files:
        if not path.expanduser().is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InvalidInput(f"{path} {what}: give files.", param="FILES")
        other = by_name.setdefault(path.name, path)
        if other is not path and not keep:
            raise InvalidInput(
                f"{other} and {path} have the same name, so that one would take the other's place: "
                "--keep keeps both.",
                param="FILES",
            )


@dataclass(frozen=True)
class Place:
    """Where documents go.

    Args:
        path: of what holds them; None for a collection that is to be made.
        documents: the path's end where they are listed.
        batches: the path's end where more are given.
    """

    name: str
    path: str | None
    documents: str
    batches: str

    def listed(self, client: Client) -> Iterator[JSON]:
        return client.pages(self.path + self.documents) if self.path else iter(())

    def into(self, client: Client) -> str:
        path = self.path or _path(client.post("/v1/vector_stores", {"name": self.name}))
        return path + self.batches


def _collection(client: Client, name: str) -> Place:
    found = find_collection(client, name)
    return Place(name, _path(found) if found else None, "/files", "/file_batches")


def _own_documents(model: str) -> Place:
    return Place(model, model_path(model), "/documents", "/documents")


def _path(collection: JSON) -> str:
    return f"/v1/vector_stores/{collection['id']}"


def find_collection(client: Client, name: str) -> JSON | None:
    """The collection by its id, or by its name; None when no collection has that name.

    Raises:
        NotFound: there is none by that id.
        InvalidInput: several have the name.
    """
    if name.startswith("vs-"):
        return client.get(f"/v1/vector_stores/{name}")
    named = [row for row in client.pages("/v1/vector_stores") if row["name"] == name]
    if len(named) > 1:
        ids = ", ".join(row["id"] for row in named)
        raise InvalidInput(f"Several collections are named {name!r}: give the id, {ids}.", param="collection")
    return named[0] if named else None


@dataclass(frozen=True)
class Compared:
    """Files against the documents that are there.

    Args:
        new: what is to be uploaded.
        unread: ids of files that were uploaded, and could not be read then.
        otherwise: ids of files that were read as of another language.
        jobs: of each file that is being read, the job.
        unchanged: how many can be searched.
    """

    new: list[Path]
    unread: list[str]
    otherwise: list[str]
    jobs: list[str]
    unchanged: int


def _compare(client: Client, place: Place, files: list[Path], language: str | None) -> Compared:
    there: dict[tuple[str, str], JSON] = {}
    for row in sorted(place.listed(client), key=lambda row: STATUSES.index(row["status"])):
        there[row["filename"], row["sha256"]] = row
    rows = [there.get((path.name, file_sha256(path.expanduser()))) for path in files]
    known = [row for row in rows if row is not None]
    completed = [row for row in known if row["status"] == "completed"]
    name = LANGUAGES.get(language.lower(), language.lower()) if language is not None else None
    otherwise = [row["id"] for row in completed if name not in (None, row["language"])]
    return Compared(
        new=[path for path, row in zip(files, rows, strict=True) if row is None],
        unread=[row["id"] for row in known if row["status"] in ("cancelled", "failed")],
        otherwise=otherwise,
        jobs=[row["job_id"] for row in known if row["status"] == "in_progress"],
        unchanged=len(completed) - len(otherwise),
    )


def _tell(found: Compared, files: int) -> None:
    if found.unchanged:
        stderr().print(f"{found.unchanged} of {files} files are there already, unchanged.")
    if found.otherwise:
        stderr().print(f"{len(found.otherwise)} of {files} files were read as of another language: again.")
    if found.jobs:
        stderr().print(f"{len(found.jobs)} of {files} files are being read already.")
    if found.unread:
        stderr().print(f"{len(found.unread)} of {files} files could not be read before: trying again.")


def _uploaded(client: Client, files: list[Path]) -> list[str]:
    """Upload files, and give their ids. One that is refused is told, and stops no other."""
    ids = []
    for path in files:
        try:
            ids.append(upload(client, str(path), stderr(), purpose="assistants"))
        except InvalidInput as error:
            report(InvalidInput(f"{path}: {error.message}"))
    return ids
