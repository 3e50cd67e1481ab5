"""`lathe models create|copy|pull|push|show`: models that are made without training, and where they go."""

import re
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from cli import completion
from cli.client import connect, model_path
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.submit import WatchFlag, show_submitted, take_back, upload
from db.errors import InvalidInput, LatheError
from db.params.values import PromptFormatName

JSON = dict[str, Any]
FILE_ID = re.compile(r"file-[0-9a-z]{1,64}")
JOB_OR_CHECKPOINT = re.compile(r"(job|checkpoint)-[0-9a-f]{32}$")

PROMPT_FORMATS = get_args(PromptFormatName)
Name = Annotated[str, typer.Argument(help="The name it answers to.", show_default=False)]


def register(app: typer.Typer) -> None:
    for command in (create, copy, pull, push, show):
        app.command()(command)


def create(
    name: Name,
    *,
    base: Annotated[
        str, typer.Option("--from", help="A model that answers.", autocompletion=completion.models)
    ] = "tiny",
    system: Annotated[str | None, typer.Option(help="Stands before every conversation.")] = None,
    template: Annotated[Path | None, typer.Option(help="A file with a Go template; on Ollama only.")] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="temperature=0.2; stop may come again.")
    ] = None,
    message: Annotated[
        list[str] | None, typer.Option("--message", "-m", help="user:Hi, then assistant:Hello, and so on.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Create a model from another, with a prompt and parameters of its own.

    $ lathe models create pirate --from tiny --system "Talk as a pirate." -p temperature=0.9
    """
    body: JSON = {"name": name, "from": base, "parameters": _parameters(parameter or [])}
    if system is not None:
        body["system"] = system
    if template is not None:
        body["template"] = template.read_text(encoding="utf-8")
    if message:
        body["messages"] = [_turn(each) for each in message]
    with connect() as client:
        made = client.post("/v1/models", body)
    _tell(made, "is created", json)


def copy(
    model: Annotated[
        str,
        typer.Argument(
            help="What is copied: faq, faq@2.", show_default=False, autocompletion=completion.models
        ),
    ],
    name: Name,
    json: JsonFlag = False,
) -> None:
    """Let another name answer as a model does, whatever becomes of the first."""
    with connect() as client:
        made = client.post(f"{model_path(model)}/copy", {"name": name})
    _tell(made, "is made", json)


def pull(
    source: Annotated[
        str,
        typer.Argument(
            help="org/name of a hub; ollama:name:tag; a .gguf file; a .zip of a folder of safetensors.",
            show_default=False,
        ),
    ],
    *,
    name: Annotated[str, typer.Option("--name", "-n", help="The name it answers to.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Of the hub: a branch, tag or commit.")] = None,
    filename: Annotated[str | None, typer.Option(help="Of the hub: which GGUF file.")] = None,
    quantization: Annotated[
        list[str] | None, typer.Option("--quantization", help="Of safetensors; may come again.")
    ] = None,
    prompt_format: Annotated[
        str | None, typer.Option(help=f"For one without a chat template: {', '.join(PROMPT_FORMATS)}.")
    ] = None,
    watch: WatchFlag = False,
    json: JsonFlag = False,
) -> None:
    """Fetch a model that is made already: from a hub, Ollama's library, or a file.

    $ lathe models pull Qwen/Qwen3-0.6B --name qwen --watch
    """
    given: JSON = {"revision": revision, "filename": filename}
    more = {name: value for name, value in given.items() if value is not None}
    with connect() as client:
        found = {"file": upload(client, source, stderr())} if _is_file(source) else _by_name(source)
        params: JSON = {"source": {**found, **more}, "name": name}
        if quantization:
            params["quantizations"] = quantization
        if prompt_format is not None:
            params["prompt_format"] = prompt_format
        try:
            job = client.submit("pull", params)
        except LatheError:
            if "file" in found and found["file"] != source:
                take_back(client, [found["file"]])
            raise
        show_submitted(client, job, watch=watch, json=json)


def push(
    source: Annotated[
        str, typer.Argument(help="A model (faq, faq@2), a job-… or a checkpoint-….", show_default=False)
    ],
    repository: Annotated[str, typer.Argument(help="org/name of a hub.", show_default=False)],
    *,
    what: Annotated[str, typer.Option(help="adapter, merged or gguf.")] = "auto",
    quantization: Annotated[
        list[str] | None, typer.Option("--quantization", help="Of gguf; may come again. Default: all.")
    ] = None,
    branch: Annotated[str, typer.Option(help="It is made if there is none.")] = "main",
    public: Annotated[bool, typer.Option("--public", help="A new repository is private without it.")] = False,
    license: Annotated[
        str | None, typer.Option(help="That the card names: apache-2.0, … Default: the base's.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="What the commit says.")] = None,
    watch: WatchFlag = False,
    json: JsonFlag = False,
) -> None:
    """Upload a model to a Hugging Face hub: its adapter, merged weights, or GGUF files.

    $ lathe models push faq my-org/faq --what gguf --watch
    """
    named = JOB_OR_CHECKPOINT.match(source)
    params: JSON = {named[1] if named else "model": source, "repository": repository, "what": what}
    params |= {"branch": branch, "private": not public}
    given = {"quantizations": quantization or None, "license": license, "message": message}
    with connect() as client:
        job = client.submit("push", params | {name: value for name, value in given.items() if value})
        show_submitted(client, job, watch=watch, json=json)


def show(
    model: Annotated[
        str,
        typer.Argument(help="faq, faq@2, faq:Q8_0.", show_default=False, autocompletion=completion.models),
    ],
) -> None:
    """Print all that is known of a model, as JSON."""
    with connect() as client:
        print_json(client.model(model))


def _is_file(source: str) -> bool:
    return FILE_ID.fullmatch(source) is not None or Path(source).expanduser().is_file()


def _by_name(source: str) -> JSON:
    if source.startswith("ollama:"):
        return {"ollama": source.removeprefix("ollama:")}
    if source.lower().endswith((".gguf", ".zip")):
        raise InvalidInput(f"There is no file {source}.", param="SOURCE")
    return {"hub": source}


def _parameters(given: list[str]) -> JSON:
    found: JSON = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals:
            raise typer.BadParameter(f"{each!r} is no name=value.", param_hint="--parameter")
        if name == "stop":
            found.setdefault(name, []).append(value)
        else:
            found[name] = _number(name, value)
    return found


def _number(name: str, value: str) -> int | float:
    try:
        return int(value) if re.fullmatch(r"-?\d+", value) else float(value)
    except ValueError:
        raise typer.BadParameter(f"{name}: {value!r} is no number.", param_hint="--parameter") from None


def _turn(given: str) -> JSON:
    role, colon, content = given.partition(":")
    if not colon or role not in ("system", "user", "assistant"):
        raise typer.BadParameter(f"{given!r} is no role:text.", param_hint="--message")
    return {"role": role, "content": content}


def _tell(made: JSON, what: str, json: bool) -> None:
    if json:
        print_json(made)
        return
    version = made["versions"][-1]
    stdout().print(f"{made['id']}@{version['number']} {what} from {version['base_model']}.", markup=False)
