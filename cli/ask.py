"""`lathe ask`: a question to documents, answered by a model that says where it has it from."""

import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cli.chat import Answer, Part, parts_of, read_stdin, stream_chunks
from cli.client import Client, connect
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.text import harmless
from db.errors import NotFound

JSON = dict[str, Any]
CITED = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")


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
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The model's name; without it, the one that was published last.",
            show_default=False,
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
            _answer(client, body)


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


def _answer(client: Client, body: JSON) -> None:
    told: JSON = {"citations": []}
    answer = Answer(stdout())
    answer.print(_parts(stream_chunks(client, {**body, "stream": True}), told))
    if not told["citations"]:
        return  # the answer itself says so, and why
    for notice in told["retrieval"]["notices"]:
        stderr().print(harmless(notice), style="yellow", markup=False, soft_wrap=True)
    cited = {int(number) for match in CITED.finditer(answer.text) for number in match[1].split(",")}
    sources = [row for row in told["citations"] if row["number"] in cited]
    stdout().print()
    if not sources:
        stderr().print("The answer cites none of the passages that it was given:", style="yellow")
    for row in sources or told["citations"]:
        stdout().print(f"[{row['number']}] {source(row)}", markup=False, soft_wrap=True)


def _parts(chunks: Iterator[JSON], told: JSON) -> Iterator[Part]:
    """The words of an answer; what it rests on goes to `told`."""
    for chunk in chunks:
        if "citations" in chunk:
            told.update(citations=chunk["citations"], retrieval=chunk["retrieval"])
        yield from parts_of(chunk)


def source(passage: JSON) -> str:
    """Where a passage stands: `handbook.pdf, p. 12 (Holidays)`."""
    first, last, label = passage["first_page"], passage["last_page"], passage["page_label"]
    pages = ""
    if first is not None:
        pages = f", p. {first}" if first == last else f", pp. {first}–{last}"
        pages += f" “{label}”" if label else ""
    section = f" ({' '.join(passage['section'].split())})" if passage["section"] else ""
    return harmless(f"{passage['filename']}{pages}{section}")
