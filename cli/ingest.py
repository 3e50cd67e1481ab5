"""`lathe ingest`: documents into a collection. What is there already, and unchanged, is not even uploaded."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, connect, model_path
from cli.output import print_json, stderr, stdout
from cli.submit import RunJson, WatchFlag, show_submitted, upload
from cli.text import harmless
from db.errors import InvalidInput

JSON = dict[str, Any]


def ingest(
    files: Annotated[
        list[Path],
        typer.Argument(help="PDF, DOCX, HTML, Markdown or plain text.", show_default=False),
    ],
    *,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", "-c", help="Its name or id; a new name makes a new one.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A model, whose own documents they become.", show_default=False),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep older documents of the same file name beside the new ones.")
    ] = False,
    watch: WatchFlag = False,
    json: RunJson = False,
) -> None:
    """Read documents into a collection, where they can be searched, or make them a model's own.

    $ lathe ingest handbook.pdf notes/*.md --collection office --watch
    $ lathe ingest handbook.pdf --model faq
    """
    for path in files:
        if not path.expanduser().is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise InvalidInput(f"{path} {what}: give files.", param="FILES")
    if (collection is None) == (model is None):
        raise InvalidInput("Say where to: --collection or --model, one of the two.", param="--collection")
    with connect() as client:
        place = _collection(client, collection) if collection is not None else _own_documents(model or "")
        new = _changed(client, place.documents, files)
        if unchanged := len(files) - len(new):
            stderr().print(f"{unchanged} of {len(files)} files are there already, unchanged.")
        if not new:
            if json:
                print_json(client.get(place.path))
            else:
                stdout().print(f"[bold]{harmless(place.name)}[/] is up to date.")
            return
        ids = [upload(client, str(path), stderr(), purpose="assistants") for path in new]
        job = place.submit(client, ids, not keep)
        show_submitted(client, job, watch=watch, json=json)


@dataclass(frozen=True)
class Place:
    """Where documents go.

    Args:
        path: of what holds them; `documents` is the path of their list.
        submit: takes the ids of uploaded files, and whether they replace what has their names; gives the job.
    """

    name: str
    path: str
    documents: str
    submit: Callable[[Client, list[str], bool], JSON]


def _collection(client: Client, name: str) -> Place:
    found = find_collection(client, name) or client.post("/v1/vector_stores", {"name": name})
    path = f"/v1/vector_stores/{found['id']}"

    def submit(client: Client, ids: list[str], replace: bool) -> JSON:
        return client.submit("ingest", {"collection": found["id"], "files": ids, "replace": replace})

    return Place(found["id"], path, f"{path}/files", submit)


def _own_documents(model: str) -> Place:
    path = model_path(model)
    documents = f"{path}/documents"

    def submit(client: Client, ids: list[str], replace: bool) -> JSON:
        batch = client.post(documents, {"file_ids": ids, "replace": replace})
        return client.job(batch["id"])

    return Place(model, path, documents, submit)


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


def _changed(client: Client, documents: str, files: list[Path]) -> list[Path]:
    there = {(row["filename"], row["sha256"]) for row in client.pages(documents, filter="completed")}
    return [path for path in files if (path.name, _sha256(path.expanduser())) not in there]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
