"""`lathe models`: the names that answer."""

from typing import Annotated, Any

import typer
from rich.table import Table

from cli.client import connect
from cli.jobs import table
from cli.output import JsonFlag, print_json, stdout
from cli.text import harmless

JSON = dict[str, Any]

app = typer.Typer(help="List models; `lathe models delete NAME` deletes one.", invoke_without_command=True)


@app.callback()
def models(context: typer.Context, json: JsonFlag = False) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        rows = client.models()
    if json:
        print_json(rows)
    else:
        stdout().print(_table_of_models(rows))


@app.command()
def delete(
    name: Annotated[str, typer.Argument(help="The model's name.", show_default=False)],
    versions: Annotated[
        bool, typer.Option("--versions", help="Delete its older versions too, not only the name.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Delete a model."""
    with connect() as client:
        answer = client.delete_model(name)
    if json:
        print_json(answer)
    else:
        stdout().print(f"{answer['id']} is deleted.", markup=False)


def _table_of_models(rows: list[JSON]) -> Table:
    made = table("Name", "Version", "Quantization", "Size", "Base", "Verified", right=("Size",))
    for row in rows:
        made.add_row(harmless(row["id"]))
    return made
