"""The `lathe` command.

    lathe up
    lathe fine-tune --base tiny --data examples/faq.csv --name faq --watch
    lathe chat faq

Exit status: 0 done; 1 the job failed or was cancelled, or the server refused; 2 wrong usage or invalid
input; 3 the server cannot be reached; 4 there is no such thing; 130 interrupted.
"""

import sys
from importlib.metadata import version as version_of
from io import TextIOWrapper
from typing import Annotated

import typer

from cli import collections, files, keys, models, projects, stack, submit, sweep, webhooks
from cli.ask import ask
from cli.chat import chat
from cli.data_inspection import app as data
from cli.devices import devices
from cli.download import download
from cli.import_openai import import_openai
from cli.ingest import ingest
from cli.jobs import checkpoints, job, jobs
from cli.output import exit_status, report
from cli.reproduce import reproduce
from cli.steering import cancel, clone, delete, pause, resume, retry
from cli.version import version
from cli.watching import watch
from db.errors import LatheError

ACCESS = "Access"
EPILOGUE = (
    "Exit status: 0 done; 1 the job failed or was cancelled, or the server refused; 2 wrong usage or invalid "
    "input; 3 the server cannot be reached; 4 there is no such thing; 130 interrupted. "
    "LATHE_API_URL names the server (default: this machine's), LATHE_API_KEY its key."
)

app = typer.Typer(
    name="lathe",
    epilog=EPILOGUE,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lathe {version_of('lathe')}")
        raise typer.Exit


@app.callback()
def lathe(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make your own language models, on your own machine.

    $ lathe up --detach

    $ lathe fine-tune --base tiny --data examples/faq.csv --name faq --watch

    $ lathe chat faq
    """


def _register() -> None:
    submit.register(app)
    panels = {
        "Jobs": (jobs, job, checkpoints, watch, cancel, pause, resume, retry, clone, delete, download),
        "Documents": (ingest, ask),
        "Use a model": (chat,),
        stack.PANEL: (devices,),
    }
    sweep.register(app)
    app.command(rich_help_panel="Make a model")(reproduce)
    app.command(rich_help_panel="Make a model")(import_openai)
    for panel, commands in panels.items():
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    app.add_typer(collections.app, name="collections", rich_help_panel="Documents")
    app.add_typer(data, name="data", rich_help_panel="Make a model")
    app.add_typer(files.app, name="files", rich_help_panel="Jobs")
    app.add_typer(webhooks.app, name="webhooks", rich_help_panel="Jobs")
    app.add_typer(models.app, name="models", rich_help_panel="Use a model")
    stack.register(app)
    app.add_typer(keys.app, name="keys", rich_help_panel=ACCESS)
    app.add_typer(projects.app, name="projects", rich_help_panel=ACCESS)
    app.command(rich_help_panel=stack.PANEL)(version)


_register()


def main() -> None:
    """Run the command line; errors that we know become a line on stderr and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a mark that a terminal cannot show is no reason to fail
    try:
        app(prog_name="lathe")
    except LatheError as error:
        report(error)
        sys.exit(exit_status(error))
