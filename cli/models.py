"""`lathe models`: the names that answer."""

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cli import completion, made_models
from cli.client import connect
from cli.output import JsonFlag, print_json, stdout
from cli.tables import table
from cli.text import harmless, size

JSON = dict[str, Any]

app = typer.Typer(
    help="List models; create, copy, pull, push, show and delete them.", invoke_without_command=True
)


made_models.register(app)


@app.callback()
def models(
    context: typer.Context,
    versions: Annotated[bool, typer.Option("--versions", help="Show older versions too.")] = False,
    json: JsonFlag = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        rows = client.models()
    if json:
        print_json(rows)
    else:
        _print_models(rows, versions)


@app.command()
def delete(
    name: Annotated[
        str | None,
        typer.Argument(
            help="faq: the name and all its versions. faq@1: that version.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    all_created: Annotated[
        bool, typer.Option("--all-created", help="All that were created or copied, and no others.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """Delete a model, or one version of it."""
    if (name is None) != all_created:
        raise typer.BadParameter("give a name, or --all-created.")
    if not yes and not json and sys.stdin.isatty():
        typer.confirm(_question(name), abort=True)
    if name is None:
        _delete_all(json)
        return
    with connect() as client:
        answer = client.delete_model(name)
    if json:
        print_json(answer)
        return
    gone = ", ".join(f"@{number}" for number in answer["versions"])
    console = stdout()
    console.print(f"{answer['id']} is deleted ({gone}).", markup=False)
    if answer.get("collection_id"):
        console.print(f"Its own documents went with it ({answer['collection_id']}).", markup=False)
    if answer.get("current_version"):
        bare = name.partition("@")[0]
        console.print(f"{bare} answers with @{answer['current_version']} now.", markup=False)


def _question(name: str | None) -> str:
    if name is None:
        return "Delete all models that were created or copied?"
    whole = "" if "@" in name else ", all its versions and its own documents"
    return f"Delete {name}{whole}?"


def _delete_all(json: bool) -> None:
    with connect() as client:
        answer = client.delete("/v1/models", created="true", confirm="delete")
    if json:
        print_json(answer)
        return
    names = ", ".join(row["id"] for row in answer["data"])
    stdout().print(f"Deleted: {names}." if names else "There were none.", markup=False)


def _print_models(rows: list[JSON], versions: bool) -> None:
    made = table(
        "Name", "Version", "Type", "Size", "Base", "Like the trained weights", right=("Version", "Size")
    )
    older = 0
    for row in rows:
        shown = [v for v in row["versions"] if versions or v["number"] == row["version"]]
        older += len(row["versions"]) - len(shown)
        if not shown:
            note = "embeddings" if row["type"] == "embedding" else row["status"]
            made.add_row(Text(row["id"], "bold"), "", Text(note, "dim"))
        for version in reversed(shown):
            _add_version(made, row, version)
    console = stdout()
    console.print(made)
    if older:
        console.print(f"{older} older: --versions shows them.", style="dim")


def _add_version(made: Table, row: JSON, version: JSON) -> None:
    is_current = version["number"] == row["version"]
    if not version["quantizations"]:
        made.add_row(
            Text(row["id"], "bold" if is_current else "dim"),
            f"@{version['number']}",
            _stored(version["details"].get("stored") or {}),
            "",
            Text(harmless(version["base_model"] or "")),
            " ".join(_verification(version["details"].get("measured") or {})),
        )
    for position, file in enumerate(version["quantizations"]):
        first = position == 0
        made.add_row(
            Text(row["id"], "bold" if is_current else "dim") if first else "",
            f"@{version['number']}" if first else "",
            file["quantization"],
            size(file["bytes"]),
            Text(harmless(version["base_model"] or "")) if first else "",
            " ".join(_verification(file["verification"] or {})),
        )


def _stored(stored: JSON) -> Text:
    """How the weights of a model that is not served are stored."""
    return Text(f"{stored.get('method', '').upper()} of {stored.get('bits')} bits, a base", "dim")


def _verification(figures: JSON) -> Iterator[str]:
    """How a file answers beside the weights it was made from."""
    if figures.get("top1_agreement") is not None:
        yield f"{100 * figures['top1_agreement']:.1f} % of tokens,"
    if figures.get("kl") is not None:
        yield f"KL {figures['kl']:.2g}"
    if figures.get("tokens_per_second"):
        yield f"{figures['tokens_per_second']:.0f} tokens/s"
