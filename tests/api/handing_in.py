"""What tests of documents hand in, and how they call `lathe`."""

import io
import os
import subprocess
import sys

from tests.documents import pdf_of
from tests.worker.conftest import REPOSITORY

HANDBOOK = pdf_of(
    [
        "Lathes turn metal. The chuck holds the workpiece while the spindle rotates.",
        "Holidays are thirty days a year. Ask the office two weeks before you leave.",
        "Coffee is free in the kitchen. The machine is cleaned on Fridays.",
    ],
    outline={"Work": 1, "Leave": 2, "Kitchen": 3},
    title="Handbook",
)


def named(name: str, content: bytes) -> io.BytesIO:
    file = io.BytesIO(content)
    file.name = name
    return file


def run_lathe(stack: str, *arguments: str) -> str:
    argv = [sys.executable, "-c", "from cli.app import main; main()", *arguments]
    own = {**os.environ, "LATHE_API_URL": stack}
    ran = subprocess.run(argv, cwd=REPOSITORY, env=own, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
