"""`lathe chat`: talk to a model, of this server or of any other that speaks OpenAI's API.

Ctrl-C stops an answer and not the program; Ctrl-D ends it.
"""

import os
import stat
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import completion
from cli.answer import Answer, stream_chunks
from cli.client import PAGE_SIZE, Client, connect
from cli.conversation import Conversation
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.talk import Talk
from cli.text import harmless
from cli.track import ENDED
from cli.watching import watch_job
from db.errors import InvalidInput, NotFound
from db.params.values import CHECKPOINT_ID

JSON = dict[str, Any]


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="The model's name: faq, faq:Q8_0, faq@2.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="Ask only this, and end. What is piped in follows it, or is asked alone.",
        ),
    ] = None,
    *,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Another server that speaks OpenAI's API: Ollama, vLLM, llama-server, …"),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key for --url. For Lathe's own API, LATHE_API_KEY is sent.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 always takes the likeliest word.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Where to cut an answer off.")] = None,
    collection: Annotated[
        list[str] | None,
        typer.Option(
            "--collection",
            "-c",
            help="Answer from it; may be given several times.",
            show_default=False,
            autocompletion=completion.collections,
        ),
    ] = None,
    load: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on with a conversation that was saved.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the conversation at its end, as JSON.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Export a checkpoint first without asking.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Talk to a model. With a prompt, or with something piped in, ask once.

    The id of a checkpoint stands for the model that was exported from it; where none was, that is done first.
    """
    conversation = Conversation(model)
    if load is not None:
        conversation.load(load)
    given = {"temperature": temperature, "max_tokens": max_tokens}
    conversation.options |= {name: value for name, value in given.items() if value is not None}
    conversation.system = conversation.system if system is None else system
    conversation.collections = collection or conversation.collections
    if save is not None and save.exists() and save != load:
        raise InvalidInput(f"{save} is there already: --save writes over the file of --load alone.")
    prompt = _prompt(prompt)
    if prompt is None and json:
        raise typer.BadParameter("--json wants a prompt, as an argument or on stdin.")
    with _server(url, api_key) as client:
        if url is None and CHECKPOINT_ID.fullmatch(model):
            export_first(client, model, ask=not yes and sys.stdin.isatty())
        if prompt is None:
            Talk(client, conversation, stdout()).run()
        else:
            conversation.remember(prompt, ask_once(client, conversation, prompt, json=json))
    if save is not None:
        conversation.save(save)


def ask_once(client: Client, conversation: Conversation, prompt: str, *, json: bool) -> str:
    """Ask, and print the answer, as JSON or as it comes."""
    body = conversation.body(prompt)
    if json:
        answer = client.post("/v1/chat/completions", {**body, "stream": False})
        print_json(answer)
        return str(answer["choices"][0]["message"]["content"])
    printed = Answer(stdout())
    printed.print(stream_chunks(client, body))
    return printed.text


def export_first(client: Client, checkpoint: str, *, ask: bool) -> None:
    """Export a checkpoint unless it was, and see it through; on stderr, since the answer is for stdout.

    Raises:
        NotFound: there is no such checkpoint.
        typer.Exit: the export failed, or its user left.
    """
    try:
        client.model(checkpoint)
        return
    except NotFound as error:
        if error.code != "checkpoint_not_exported":
            raise
        console = stderr()
        console.print(harmless(error.message), markup=False, soft_wrap=True)
    if ask:
        typer.confirm(f"Export {checkpoint} now?", default=True, abort=True, err=True)
    exports = client.jobs(kind="export", limit=PAGE_SIZE)
    job = next((row for row in exports if _exports(row, checkpoint)), None)
    if job is None:
        job = client.submit("export", {"checkpoint": checkpoint})
        console.print(f"Exporting it: {job['id']}.", markup=False)
    watch_job(client, job["id"], console=console)


def _exports(job: JSON, checkpoint: str) -> bool:
    return job["params"].get("checkpoint") == checkpoint and job["status"] not in ENDED


def _prompt(given: str | None) -> str | None:
    """What is to be asked: the argument, followed by what is piped in; None at a terminal."""
    if given is None:
        return None if sys.stdin.isatty() else read_stdin()
    piped = sys.stdin.read().strip() if _is_piped() else ""
    return f"{given}\n\n{piped}" if piped else given


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file. Anything else might never come to its end."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def read_stdin() -> str:
    prompt = sys.stdin.read().strip()
    if not prompt:
        raise InvalidInput("There is no prompt: stdin is empty.")
    return prompt


def _server(url: str | None, api_key: str | None) -> Client:
    if url is None:
        return connect()
    # LATHE_API_KEY is for our own server and is shown to no other.
    address = url.rstrip("/").removesuffix("/v1")
    return Client(
        address,
        api_key or "",
        hint="--url names the server's address.",
        key_hint="--api-key gives the key that is sent.",
    )
