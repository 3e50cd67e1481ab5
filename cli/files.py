"""`lathe files`: what was uploaded, and what jobs left as files."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completion
from cli.client import connect, segment
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.submit import upload
from cli.tables import keep_whole, table
from cli.text import harmless, moment, size
from db.errors import InvalidInput

JSON = dict[str, Any]

app = typer.Typer(
    help="List files, the newest first; add and delete them. Commands that take a path upload by themselves.",
    invoke_without_command=True,
)


@app.callback()
def files(
    context: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many, the newest first.")] = 20,
    json: JsonFlag = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        rows = list(client.pages("/v1/files", limit=limit))
    if json:
        print_json(rows)
        return
    if not rows:
        stdout().print("There are no files yet: `lathe files add FILE` uploads one.")
        return
    made = table("File", "Name", "Size", "Purpose", "Created", right=("Size",))
    keep_whole(made, 0, 2, 4)
    for row in rows:
        made.add_row(
            row["id"],
            harmless(row["filename"]),
            size(row["bytes"]),
            row["purpose"],
            moment(row["created_at"]),
        )
    stdout().print(made)


@app.command()
def add(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE…", show_default=False)],
    purpose: Annotated[
        str, typer.Option(help="fine-tune, batch, assistants (documents) or user_data.")
    ] = "fine-tune",
    json: JsonFlag = False,
) -> None:
    """Upload files, and print the id of each: a job takes it in place of a path.

    $ lathe files add examples/faq.csv
    """
    for path in paths:
        if not path.is_file():
            raise InvalidInput(
                f"{path} {'is a folder' if path.is_dir() else 'does not exist'}.", param="FILE"
            )
    with connect() as client:
        for path in paths:
            file_id = upload(client, str(path), stderr(), purpose=purpose)
            if json:
                print_json(client.get(f"/v1/files/{segment(file_id)}"))
            else:
                stdout().print(file_id, markup=False)


@app.command()
def delete(
    file_id: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Its id: file-….", show_default=False, autocompletion=completion.files
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete a file, and with it the documents that were made of it. One that a job still needs stays."""
    with connect() as client:
        path = f"/v1/files/{segment(file_id)}"
        if not yes and not json and sys.stdin.isatty():
            typer.confirm(f"Delete {harmless(client.get(path)['filename'])}?", abort=True)
        gone = client.delete(path)
    if json:
        print_json(gone)
    else:
        stdout().print(f"{gone['id']} is deleted.", markup=False)
