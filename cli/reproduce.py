"""`lathe reproduce`: a fine-tune once more from its recipe, and how near the second comes to the first."""

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.client import Client, connect
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.recipes import compare_recipes, params_of_recipe, print_comparison
from cli.submit import show_submitted, take_back, upload
from cli.watching import watch_job
from db.disk import file_sha256
from db.errors import InvalidInput, LatheError, NotFound

JSON = dict[str, Any]
RECIPE = "recipe.json"


def reproduce(
    source: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|JOB|PATH", help="What was fine-tuned, or its recipe.json.", show_default=False
        ),
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="Of the second model. Default: the first's, -again.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="A file of it that is no longer on the server; known by its sha256."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit it, and do not wait.")] = False,
    compare: Annotated[
        str | None, typer.Option(metavar="MODEL|JOB|PATH", help="Run nothing: hold it against this one.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run a fine-tune again from its recipe: same data, base, parameters and seed. Tells what differs.

    $ lathe reproduce faq
    """
    with connect() as client:
        first = _recipe(client, source)
        if compare is not None:
            _tell(first, _recipe(client, compare), json=json)
            return
        params = params_of_recipe(first, name=name)
        uploaded = _files(client, first, data or [])
        params = _renamed(params, uploaded)
        try:
            job = client.submit("fine_tune", params, metadata={"reproduces": first["job"]})
        except LatheError:
            take_back(client, list(uploaded.values()))
            raise
        if detach:
            show_submitted(client, job, watch=False, json=json)
            if not json:
                stdout().print(f"Then:  lathe reproduce {source} --compare {job['id']}", style="dim")
            return
        watch_job(client, job["id"], console=stderr() if json else None)
        _tell(first, _recipe(client, job["id"]), json=json)


def _tell(first: JSON, second: JSON, *, json: bool) -> None:
    found = compare_recipes(first, second)
    if json:
        print_json(found)
    else:
        print_comparison(found, stdout())


def _recipe(client: Client, source: str) -> JSON:
    """The recipe of a file, a job, or the job that made a model.

    Raises:
        InvalidInput, NotFound: there is none.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _read(path.read_bytes(), source)
    job_id = source if source.startswith("job-") else _job_of(client, source)
    try:
        with client.stream("GET", client.artifact_path(job_id, RECIPE)) as response:
            return _read(response.read(), source)
    except NotFound as error:
        raise NotFound(
            f"{job_id} has left no {RECIPE}: it is no fine-tune that has succeeded, or was made before there "
            "were any."
        ) from error


def _job_of(client: Client, model: str) -> str:
    found = client.model(model)
    number = model.partition("@")[2].partition(":")[0]
    wanted = int(number) if number.isdigit() else found["version"]
    version = next((each for each in found["versions"] if each["number"] == wanted), None)
    if version is None or version["details"].get("kind") != "fine_tune":
        raise InvalidInput(f"{model} is no model that a fine-tune has made.")
    if version["job_id"] is None:
        raise NotFound(f"The job that trained {model} is deleted: give its {RECIPE}, if you have kept it.")
    return str(version["job_id"])


def _read(content: bytes, source: str) -> JSON:
    try:
        recipe = json_text.loads(content)
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict) or recipe.get("kind") != "fine_tune" or recipe.get("format") != 1:
        raise InvalidInput(f"{source} is no recipe of a fine-tune that this version reads.")
    return recipe


def _files(client: Client, recipe: JSON, given: list[Path]) -> dict[str, str]:
    """See that the server has every file as it was, or upload it.

    Returns:
        the ids of those that were uploaded, by the id that the recipe has.

    Raises:
        InvalidInput: one is not there, or is not what it was.
    """
    by_hash = {_sha256(path): path for path in given}
    uploaded: dict[str, str] = {}
    for file_id, was in recipe["data"]["files"].items():
        if was["sha256"] in by_hash:
            uploaded[file_id] = upload(client, str(by_hash[was["sha256"]]), stderr())
            continue
        try:
            now = client.get(f"/v1/files/{file_id}")["sha256"]
        except NotFound:
            now = None
        if now != was["sha256"]:
            take_back(client, list(uploaded.values()))
            what = "is no longer on the server" if now is None else "is not what it was"
            others = f" None of the given files has its sha256, {was['sha256']}." if given else ""
            raise InvalidInput(f"{was['filename']} {what}: give it by --data.{others}")
    return uploaded


def _renamed(value: Any, ids: dict[str, str]) -> Any:
    """Params with other ids for files, wherever these stand."""
    if isinstance(value, dict):
        return {name: _renamed(inner, ids) for name, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, ids) for inner in value]
    return ids.get(value, value) if isinstance(value, str) else value


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path.expanduser())
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}.", param_hint="--data") from None
