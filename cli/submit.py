"""`lathe fine-tune`, `pretrain`, `quantize`, `export`, `evaluate` and `predict`: a flag for every parameter,
uploads, and the job.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cli import completion
from cli.client import Client, connect
from cli.estimates import show_estimate
from cli.flags import (
    Flag,
    bad_value,
    check_values,
    flags_of,
    option_parameters,
    read_values,
    spelling_of,
    understand,
    with_options,
)
from cli.output import print_json, stderr, stdout
from cli.watching import watch_job
from db.errors import InvalidInput, LatheError
from db.kinds import PARAMS
from db.params.values import Params

FILE_ID = re.compile(r"file-[0-9a-z]{1,64}")
RUNNING_PANEL = "Running"
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")
SECONDS_OF = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}

WatchFlag = Annotated[
    bool, typer.Option("--watch", "-w", help="Follow the job until it ends.", rich_help_panel=RUNNING_PANEL)
]


def _seconds(text: str) -> int:
    """Read `5400`, `90m`, `1.5h` or `2d`; `none` is 0."""
    match = DURATION.fullmatch(text.strip().lower())
    if text.strip().lower() == "none":
        return 0
    seconds = round(float(match[1]) * SECONDS_OF[match[2]]) if match else 0
    if seconds < 1:
        raise typer.BadParameter(f"{text!r} is no time of at least a second: give 5400, 90m, 1.5h or 2d.")
    return seconds


def _max_attempts(default: str) -> Any:
    text = f"How often a step that is lost may be tried. Default: {default}."
    return typer.Option(min=1, max=20, metavar="integer", help=text, rich_help_panel=RUNNING_PANEL)


def _max_runtime(default: str) -> Any:
    text = f"How long it may run, all its tries together; then it saves and stops. Default: {default}."
    metavar = "seconds|90m|2h|1d|none"
    return typer.Option(parser=_seconds, metavar=metavar, help=text, rich_help_panel=RUNNING_PANEL)


def _priority(default: str) -> Any:
    text = f"Jobs of a higher one go first. Default: {default}."
    return typer.Option(min=-1000, max=1000, metavar="integer", help=text, rich_help_panel=RUNNING_PANEL)


AS_IN_THAT_JOB = "as in that job"
MaxAttempts = Annotated[int | None, _max_attempts("3")]
MaxRuntime = Annotated[int | None, _max_runtime("no limit")]
Priority = Annotated[int | None, _priority("0")]
OtherMaxAttempts = Annotated[int | None, _max_attempts(AS_IN_THAT_JOB)]
OtherMaxRuntime = Annotated[int | None, _max_runtime(AS_IN_THAT_JOB)]
OtherPriority = Annotated[int | None, _priority(AS_IN_THAT_JOB)]
WebhookUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Tell this address when the job ends, by a signed webhook.",
        rich_help_panel=RUNNING_PANEL,
    ),
]
RunJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print the job as JSON and nothing else; with --watch, JSON lines.",
        rich_help_panel=RUNNING_PANEL,
    ),
]

EXAMPLES = {
    "fine_tune": "lathe fine-tune --base tiny --data examples/faq.csv --name faq --watch",
    "pretrain": "lathe pretrain --name my-tiny --data book.txt --steps 500 --watch",
    "quantize": "lathe quantize --base tiny --name tiny-gptq --watch",
    "predict": 'lathe predict --model faq --data rows.csv --prompt "{context} {input}" --watch',
    "evaluate": "lathe evaluate faq --data held-out.jsonl --watch",
    "export": "lathe export checkpoint-… --name faq-early --quantization Q8_0 --watch",
}
PURPOSES = {"predict": "user_data"}
ESTIMATED = ("fine_tune", "quantize")
PANELS_OF = {"predict": "Use a model", "evaluate": "Use a model"}
# A kind's params that are named by an argument; several are told apart by how their ids begin.
BY_ARGUMENT = {"export": ("checkpoint", "job"), "evaluate": ("model",)}


def register(app: typer.Typer) -> None:
    """Add a command for each kind of job that makes a model, or asks one for many rows."""
    for kind in EXAMPLES:
        app.command(
            kind.replace("_", "-"),
            rich_help_panel=PANELS_OF.get(kind, "Make a model"),
            context_settings={"token_normalize_func": understand},
        )(_command(kind, PARAMS[kind]))


def _command(kind: str, model: type[Params]) -> Callable[..., None]:
    def command(
        *,
        watch: WatchFlag = False,
        max_attempts: MaxAttempts = None,
        max_runtime: MaxRuntime = None,
        priority: Priority = None,
        webhook_url: WebhookUrl = None,
        json: RunJson = False,
        **params: Any,
    ) -> None:
        params |= named_by_argument(kind, params)
        if params.pop("dry_run", False):
            estimate(kind, model, params, json=json)
            return
        submit(
            kind,
            model,
            params,
            watch=watch,
            json=json,
            max_attempts=max_attempts,
            max_runtime_seconds=max_runtime or None,
            priority=priority,
            webhook_url=webhook_url,
        )

    command.__doc__ = f"{model.__doc__}\n\n    $ {EXAMPLES[kind]}"
    options = option_parameters(kind, model, by_argument=BY_ARGUMENT.get(kind, ()))
    return with_options(command, [*_argument(kind), *options, *_dry_run(kind)])


def _dry_run(kind: str) -> list[inspect.Parameter]:
    if kind not in ESTIMATED:
        return []
    option = typer.Option(
        "--dry-run",
        help="Only say what it would take, and whether it fits: nothing is done.",
        rich_help_panel=RUNNING_PANEL,
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter("dry_run", keyword, default=False, annotation=Annotated[bool, option])]


def _argument(kind: str) -> list[inspect.Parameter]:
    """What a kind takes without a flag: `lathe export checkpoint-…`."""
    names = BY_ARGUMENT.get(kind)
    if names is None:
        return []
    argument = typer.Argument(
        metavar="|".join(name.upper() for name in names),
        help=f"A {' or a '.join(names)}, in place of its flag.",
        show_default=False,
        autocompletion=completion.models if names == ("model",) else None,
    )
    keyword = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter("argument", keyword, default=None, annotation=Annotated[str | None, argument])]


def named_by_argument(kind: str, params: dict[str, Any]) -> dict[str, Any]:
    value = params.pop("argument", None)
    if value is None:
        return {}
    if len(BY_ARGUMENT[kind]) == 1:
        return {BY_ARGUMENT[kind][0]: value}
    for name in BY_ARGUMENT[kind]:
        if value.startswith(f"{name}-"):
            return {name: value}
    known = " or ".join(f"{name}-…" for name in BY_ARGUMENT[kind])
    raise typer.BadParameter(f"{value!r} is no id of what can be exported: {known}.")


def submit(
    kind: str, model: type[Params], given: dict[str, Any], *, watch: bool, json: bool, **fields: Any
) -> None:
    """Check what was typed, upload its files, send the job, and follow it if asked to."""
    values = read_values(model, given)
    check_values(model, values)
    check_files(model, values)
    with connect() as client:
        values, uploaded = upload_files(client, model, values, purpose=PURPOSES.get(kind, "fine-tune"))
        with told_by_flag(client, model, uploaded):
            job = client.submit(kind, values, **fields)
        show_submitted(client, job, watch=watch, json=json)


def estimate(kind: str, model: type[Params], given: dict[str, Any], *, json: bool) -> None:
    """Say what a job would take, and leave nothing of it behind but the job that reckoned it."""
    values = read_values(model, given)
    check_values(model, values)
    check_files(model, values)
    with connect() as client:
        values, uploaded = upload_files(client, model, values, purpose="fine-tune")
        try:
            with told_by_flag(client, model, []):
                show_estimate(client, client.estimate(kind, values), model, json=json)
        finally:
            take_back(client, uploaded)


def check_files(model: type[Params], values: dict[str, Any]) -> None:
    """See that each path that is to be uploaded is there."""
    for name, flag in flags_of(model).items():
        if name in values and flag.is_file:
            _check_file(values[name], flag)
        elif name in values and flag.is_files:
            for each in values[name]:
                _check_file(each["file"], flag)


def upload_files(
    client: Client, model: type[Params], values: dict[str, Any], *, purpose: str
) -> tuple[dict[str, Any], list[str]]:
    """Upload what is given by a path.

    Returns:
        the values with ids in place of paths, and the ids that are new.
    """
    uploaded = []

    def id_of(source: str) -> str:
        file_id = upload(client, source, stderr(), purpose=purpose)
        if file_id != source:
            uploaded.append(file_id)
        return file_id

    with_ids = dict(values)
    for name, flag in flags_of(model).items():
        if name in values and flag.is_file:
            with_ids[name] = id_of(values[name])
        elif name in values and flag.is_files:
            with_ids[name] = [{**each, "file": id_of(each["file"])} for each in values[name]]
    return with_ids, uploaded


@contextmanager
def told_by_flag(client: Client, model: type[Params], uploaded: list[str]) -> Iterator[None]:
    """Name the flag that was typed where the server names its field, and take back what was uploaded."""
    try:
        yield
    except InvalidInput as error:
        take_back(client, uploaded)
        spelling = spelling_of(model, error.param) or error.param
        message = error.message
        if message.startswith(f"{error.param}: "):  # the flag stands in its place
            rest = message.removeprefix(f"{error.param}: ")
            message = rest[:1].upper() + rest[1:]
        raise InvalidInput(message, param=spelling, code=error.code) from None


def take_back(client: Client, uploaded: list[str]) -> None:
    """Delete what was uploaded for a job that was refused."""
    for file_id in uploaded:
        with suppress(LatheError):  # what was wrong with the job is told all the same
            client.delete(f"/v1/files/{file_id}")


def show_submitted(client: Client, job: dict[str, Any], *, watch: bool, json: bool) -> None:
    """Print a new job, or follow it if asked to."""
    if watch:
        watch_job(client, job["id"], json=json)
    elif json:
        print_json(job)
    else:
        console = stdout()
        console.print(f"[bold]{job['id']}[/] {job['status']}")
        if job.get("waits_for"):
            console.print(f"It waits for {job['waits_for']}, which makes its base model.")
        console.print(f"Follow it:  lathe watch {job['id']}", style="dim")


def upload(client: Client, source: str, console: Console, *, purpose: str = "fine-tune") -> str:
    """Upload a file and return its id; an id is returned as it is."""
    if _is_id(source):
        return source
    path = Path(source).expanduser()
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_interactive,
    )
    with progress, progress.open(path, "rb", description=f"Uploading {path.name}") as file:
        return str(client.upload(file, path.name, purpose)["id"])


def _is_id(source: str) -> bool:
    return FILE_ID.fullmatch(source) is not None and not Path(source).exists()


def _check_file(source: str, flag: Flag) -> None:
    path = Path(source).expanduser()
    if not _is_id(source) and not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise bad_value(f"{path} {what}: give a file, or the id of one uploaded before (file-…).", flag)
