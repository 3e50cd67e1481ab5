"""`lathe import-openai`: a fine-tune of OpenAI's again, here, under the name that its callers know."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import connect
from cli.output import JsonFlag, stderr
from cli.submit import show_submitted, take_back, upload
from cli.text import harmless
from db.errors import InvalidInput
from db.params.values import ALIAS_PREFIX

JSON = dict[str, Any]
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
METHODS: dict[str, tuple[str, ...]] = {"supervised": (), "dpo": ("beta",)}  # and the hyperparameters of each
MOST_METADATA = 16

JobFile = Annotated[
    Path,
    typer.Argument(
        metavar="JOB.JSON",
        help="The job, as client.fine_tuning.jobs.retrieve(…).to_json() writes it.",
        show_default=False,
    ),
]
DataFile = Annotated[
    str, typer.Argument(metavar="DATA.JSONL", help="Its training file, or the id of one uploaded before.")
]


def import_openai(
    job: JobFile,
    data: DataFile,
    *,
    base: Annotated[
        str, typer.Option(help="What is trained in place of OpenAI's model: Qwen/Qwen3-8B.")
    ] = "tiny",
    name: Annotated[
        str | None, typer.Option(help="The model's name here. Default: the job's suffix.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="PATH|file-ID", help="Its validation file.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train a fine-tune of OpenAI's again, with its hyperparameters. Its old name answers chat afterwards.

    $ lathe import-openai job.json faq.jsonl --base Qwen/Qwen3-0.6B --watch
    """
    theirs = _read_job(job)
    body = _request(theirs, base, name)
    for told in _told(theirs, body):
        stderr().print(harmless(told), style="dim", markup=False, soft_wrap=True)
    for path in filter(None, (data, validation)):
        if not path.startswith("file-") and not Path(path).expanduser().is_file():
            raise InvalidInput(f"{path} does not exist: give a file, or the id of one uploaded before.")
    with connect() as client:
        files = {"training_file": data, **({"validation_file": validation} if validation else {})}
        uploaded = {field: upload(client, source, stderr()) for field, source in files.items()}
        try:
            made = client.post("/v1/fine_tuning/jobs", {**body, **uploaded})
        except InvalidInput:
            take_back(client, [one for field, one in uploaded.items() if one != files[field]])
            raise
        show_submitted(client, client.job(made["id"]), watch=watch, json=json)


def _read_job(path: Path) -> JSON:
    try:
        job = json_module.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {error}.") from None
    if not isinstance(job, dict) or job.get("object") != "fine_tuning.job":
        raise InvalidInput(
            f'{path} is no fine-tuning job of OpenAI\'s: it has "object": "fine_tuning.job". '
            "GET /v1/fine_tuning/jobs/{id} there answers with one."
        )
    return job


def _request(theirs: JSON, base: str, name: str | None) -> JSON:
    """What is asked of `POST /v1/fine_tuning/jobs` here.

    Raises:
        InvalidInput: it was trained by another method.
    """
    method = theirs.get("method") or {}
    kind = method.get("type", "supervised")
    if kind not in METHODS:
        raise InvalidInput(f"That job trained by {kind!r}; here models learn by {' and '.join(METHODS)}.")
    nested = (method.get(kind) or {}).get("hyperparameters") or {}
    given = {**(theirs.get("hyperparameters") or {}), **nested}
    fields = [*HYPERPARAMETERS, *METHODS[kind]]
    chosen = {field: given[field] for field in fields if given.get(field) is not None}
    body: JSON = {
        "model": base,
        "suffix": name or _suffix(theirs),
        "method": {"type": kind, kind: {"hyperparameters": chosen}},
        "metadata": _metadata(theirs),
    }
    if theirs.get("seed") is not None:
        body["seed"] = theirs["seed"]
    if _old_name(theirs).startswith(ALIAS_PREFIX):
        body["params"] = {"alias": _old_name(theirs)}
    return body


def _old_name(theirs: JSON) -> str:
    return str(theirs.get("fine_tuned_model") or "")


def _suffix(theirs: JSON) -> str:
    """`faq` of `ft:gpt-4o-mini-2024-07-18:acme:faq:9x8y7z`; else the end of the job's own id."""
    parts = _old_name(theirs).split(":")
    suffix = parts[3] if len(parts) > 4 else ""
    return suffix or f"imported-{str(theirs.get('id', ''))[-8:].lower()}"


def _metadata(theirs: JSON) -> JSON:
    """Theirs, and as far as there is room where it comes from."""
    known = dict(theirs.get("metadata") or {})
    origin = {"openai_job": str(theirs.get("id")), "openai_model": str(theirs.get("model"))}
    room = MOST_METADATA - len(known)
    return {**dict(list(origin.items())[: max(room, 0)]), **known}


def _told(theirs: JSON, body: JSON) -> list[str]:
    """What becomes of what the job had."""
    chosen = body["method"][body["method"]["type"]]["hyperparameters"]
    figures = ", ".join(f"{field} {value}" for field, value in chosen.items()) or "all auto"
    told = [f"{theirs.get('model')} → {body['model']}; {figures}."]
    old = _old_name(theirs)
    if "params" in body:
        told.append(f"Once it has succeeded, {old} answers chat here.")
    elif old:
        told.append(
            f"{old} does not begin with {ALIAS_PREFIX}, so it will not answer here: ask {body['suffix']}."
        )
    else:
        told.append(f"That job has made no model, so there is no old name to keep: ask {body['suffix']}.")
    if theirs.get("integrations"):
        told.append("Its integrations are left out: LATHE_TRACKERS names those of this server.")
    return told
