"""`lathe ask`: a question to documents, answered by a model that says where it has it from."""

import sys
from typing import Annotated, Any

import typer

from cli import completion
from cli.answer import Answer, stream_chunks
from cli.chat import read_stdin
from cli.client import Client, connect
from cli.output import JsonFlag, print_json, stdout
from db.errors import NotFound

JSON = dict[str, Any]


def ask(
    question: Annotated[
        str | None,
        typer.Argument(metavar="QUESTION", help="Without it stdin is asked.", show_default=False),
    ] = None,
    *,
    collection: Annotated[
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            help="Its name or id; may be given several times. Without it, the model's own documents.",
            show_default=False,
            autocompletion=completion.collections,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The model's name; without it, the one that was published last.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="Let the model put the question in other words first.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Where to cut an answer off.")] = None,
    json: JsonFlag = False,
) -> None:
    """Ask a question of documents, and see the pages that the answer rests on.

    $ lathe ask "How many days of holidays?" --collection office
    """
    if question is None and sys.stdin.isatty():
        raise typer.BadParameter("Give a question, as an argument or on stdin.")
    with connect() as client:
        body: JSON = {
            "model": model or _newest(client),
            "messages": [{"role": "user", "content": read_stdin() if question is None else question}],
            **({"collections": collection} if collection else {"documents": True}),
            **({"retrieval": {"rewrite_query": True}} if rewrite else {}),
            **({"max_tokens": max_tokens} if max_tokens else {}),
        }
        if json:
            print_json(client.post("/v1/chat/completions", body))
        else:
            Answer(stdout()).print(stream_chunks(client, body))


def _newest(client: Client) -> str:
    """The model that was published last.

    Raises:
        NotFound: none can answer yet.
    """
    ready = [row for row in client.models() if row["type"] == "chat" and row["status"] == "ready"]
    if not ready:
        raise NotFound(
            "No model is ready to answer: `lathe fine-tune` or `lathe pretrain` makes one. "
            "`lathe collections search` finds passages without a model.",
            param="model",
        )
    return str(max(ready, key=_published)["id"])


def _published(row: JSON) -> int:
    times = [version["created_at"] for version in row["versions"] if version["number"] == row["version"]]
    return int(max(times, default=row["created"]))
