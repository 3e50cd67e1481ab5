"""`lathe collections`: what was ingested, and a search in it."""

import sys
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.client import Client, connect
from cli.ingest import find_collection
from cli.jobs import table
from cli.output import JsonFlag, print_json, stdout
from cli.text import harmless, size
from db.errors import NotFound

JSON = dict[str, Any]
SHOWN_CHARACTERS = 400

app = typer.Typer(
    help="List collections; `lathe collections search NAME 'QUESTION'` searches one.",
    invoke_without_command=True,
)
Name = Annotated[str, typer.Argument(help="The collection's name or id.", show_default=False)]


@app.callback()
def collections(context: typer.Context, json: JsonFlag = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        rows = list(client.pages("/v1/vector_stores"))
    if json:
        print_json(rows)
        return
    shown = table(
        "Name", "Id", "Status", "Documents", "Failed", "Size", right=("Documents", "Failed", "Size")
    )
    for row in rows:
        counts = row["file_counts"]
        shown.add_row(
            harmless(row["name"]),
            row["id"],
            row["status"],
            str(counts["completed"]),
            str(counts["failed"]),
            size(row["usage_bytes"]),
        )
    stdout().print(shown)


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
        console.print(f"{found['in_progress']} documents are still being read.", style="yellow")
    for notice in found["notices"]:
        console.print(harmless(notice), style="yellow", markup=False)
    if not found["data"]:
        console.print("Nothing was found.")
    for passage in found["data"]:
        console.print(Text.assemble((harmless(passage["filename"]), "bold"), (_place(passage), "dim")))
        text = " ".join(passage["content"][0]["text"].split())
        more = " …" if len(text) > SHOWN_CHARACTERS else ""
        console.print(f"  {harmless(text[:SHOWN_CHARACTERS])}{more}", markup=False)


def _place(passage: JSON) -> str:
    """Where a passage stands: its page as printed, or its section."""
    first, last = passage["first_page"], passage["last_page"]
    parts = []
    if first is not None:
        pages = f"page {first}" if first == last else f"pages {first}–{last}"
        parts.append(f"{pages} (“{passage['page_label']}”)" if passage["page_label"] else pages)
    if passage["section"]:
        parts.append(harmless(passage["section"]))
    parts.append(f"{passage['similarity']:.2f}")
    return "  " + ", ".join(parts)


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
