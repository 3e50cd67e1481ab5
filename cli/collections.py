"""`lathe collections`: what was ingested, and a search in it."""

import sys
from typing import Annotated, Any

import typer
from rich.padding import Padding
from rich.text import Text

from cli import completion
from cli.answer import source
from cli.client import Client, connect
from cli.ingest import find_collection
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.tables import keep_whole, table
from cli.text import harmless, size
from db.errors import NotFound

JSON = dict[str, Any]
SHOWN_CHARACTERS = 400

app = typer.Typer(
    help="List collections; `lathe collections search NAME 'QUESTION'` searches one.",
    invoke_without_command=True,
)
Name = Annotated[
    str,
    typer.Argument(
        help="The collection's name or id.", show_default=False, autocompletion=completion.collections
    ),
]


@app.callback()
def collections(context: typer.Context, json: JsonFlag = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        rows = list(client.pages("/v1/vector_stores"))
    if json:
        print_json(rows)
        return
    if not rows:
        stdout().print("There are no collections yet: `lathe ingest FILES --collection NAME` makes one.")
        return
    shown = table("Name", "Id", "Documents", "Size", right=("Size",))
    keep_whole(shown, 1, 3)
    for row in rows:
        shown.add_row(harmless(row["name"]), row["id"], _documents(row), size(row["usage_bytes"]))
    stdout().print(shown)


def _documents(row: JSON) -> str:
    """How many can be searched, and what there is besides."""
    counts = row["file_counts"]
    others = (("in_progress", "being read"), ("failed", "failed"), ("cancelled", "cancelled"))
    said = [f"{counts[status]} {words}" for status, words in others if counts[status]]
    if row["status"] == "expired":
        said.append("expired")
    return ", ".join([str(counts["completed"]), *said])


@app.command()
def search(
    name: Name,
    query: Annotated[str, typer.Argument(help="A question, or words.", show_default=False)],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=50, help="Passages at most.")] = 5,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Let a chat model put it in other words, too.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show the passages that fit best, with the document and the page of each."""
    with connect() as client:
        body = {"query": query, "max_num_results": limit, "rewrite_query": rewrite}
        found = client.post(f"/v1/vector_stores/{_of(client, name)['id']}/search", body)
    if json:
        print_json(found)
        return
    console = stdout()
    if found["in_progress"]:
        words = "documents are" if found["in_progress"] > 1 else "document is"
        stderr().print(f"{found['in_progress']} {words} still being read.", style="yellow")
    for notice in found["notices"]:
        stderr().print(harmless(notice), style="yellow", markup=False, soft_wrap=True)
    if not found["data"]:
        console.print("Nothing was found.")
    for passage in found["data"]:
        similarity = (f"  similarity {passage['similarity']:.2f}", "dim")
        console.print(Text.assemble((source(passage), "bold"), similarity), soft_wrap=True)
        text = " ".join(passage["content"][0]["text"].split())
        more = " …" if len(text) > SHOWN_CHARACTERS else ""
        console.print(Padding(Text(harmless(text[:SHOWN_CHARACTERS]) + more), (0, 0, 0, 2)))


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete a collection with its documents; the uploaded files stay."""
    with connect() as client:
        found = _of(client, name)
        if not yes and not json and sys.stdin.isatty():
            typer.confirm(f"Delete {found['id']} with {found['file_counts']['total']} documents?", abort=True)
        answer = client.delete(f"/v1/vector_stores/{found['id']}")
    if json:
        print_json(answer)
    else:
        stdout().print(f"{answer['id']} is deleted.")


def _of(client: Client, name: str) -> JSON:
    found = find_collection(client, name)
    if found is None:
        raise NotFound(f"There is no collection named {name!r}.", param="name")
    return found
