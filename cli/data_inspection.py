"""`lathe data inspect`: what a training would make of rows, before there is one."""

from typing import Annotated, Any

import typer

from cli.client import Client, connect
from cli.data_view import print_inspection
from cli.flags import check_values, option_parameters, read_values, understand, with_options
from cli.following import follow
from cli.output import JsonFlag, print_json, stderr, stdout
from cli.submit import check_files, told_by_flag, upload_files
from cli.text import harmless
from cli.track import ENDED
from db.errors import InvalidInput
from db.params.inspect import InspectParams

JSON = dict[str, Any]
WAIT_SECONDS = 5
PROBLEMS_SHOWN = 20

app = typer.Typer(help="Look at training data, before it is trained on.", no_args_is_help=True)

Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE…", help="Rows to train on: a path, or file-…; of several each may have =weight."
    ),
]


def inspect(*, files: Files = None, json: JsonFlag = False, **params: Any) -> None:
    """Show what a fine-tune would learn of rows: tokens, what is cut, doubled or leaks, and the first rows.

    $ lathe data inspect examples/faq.csv --base tiny
    """
    given = params | _of_arguments(files or [])
    values = read_values(InspectParams, given)
    check_values(InspectParams, values)
    check_files(InspectParams, values)
    with connect() as client:
        values, uploaded = upload_files(client, InspectParams, values, purpose="fine-tune")
        with told_by_flag(client, InspectParams, uploaded):
            job = client.post(f"/v1/datasets/inspect?wait={WAIT_SECONDS}", values)
        job = _followed(client, job)
        if json:
            print_json(job)
        if job["status"] != "succeeded":
            _fail(job, quiet=json)
        if not json:
            print_inspection(stdout(), job["result"], client.warnings(job["id"]))
            for file_id in uploaded:
                stdout().print(f"Uploaded as {file_id}, which --data takes.", style="dim", markup=False)


def _of_arguments(files: list[str]) -> JSON:
    """One file, or several with weights."""
    if len(files) == 1 and "=" not in files[0]:
        return {"training_file": files[0]}
    return {"training_files": files} if files else {}


class _Silent:
    def update(self, job: JSON) -> None:
        pass

    def event(self, job_id: str, event: JSON) -> None:
        pass


def _followed(client: Client, job: JSON) -> JSON:
    if job["status"] in ENDED:
        return job
    with stderr().status(f"{job['id']} reads the rows …"):
        return follow(client, job["id"], _Silent())


def _fail(job: JSON, *, quiet: bool) -> None:
    error = job["error"] or {"message": f"The job is {job['status']}."}
    problems = error.get("problems", [])
    if not quiet:
        for problem in problems[:PROBLEMS_SHOWN]:
            stderr().print(f"  {harmless(problem['message'])}", markup=False, soft_wrap=True)
    raise InvalidInput(error["message"], param=error.get("param"), code=error.get("code"))


parameters = option_parameters("inspect", InspectParams)
app.command(context_settings={"token_normalize_func": understand})(with_options(inspect, parameters))


@app.callback()
def data() -> None:
    """Look at training data, before it is trained on."""
