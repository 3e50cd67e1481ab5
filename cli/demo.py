"""The main job, before your eyes: `python -m cli.demo`, which `make demo` runs after setup.

Starts a stack unless one runs, fine-tunes `tiny` on a CSV of 20 facts over REST, asks base and tuned
model the same questions, and stops what it started. Interrupted, it cancels its job first.
"""

import argparse
import csv
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.client import Client
from cli.following import follow
from cli.output import ExitStatus
from cli.render import JobView
from cli.text import duration, harmless, size
from cli.track import ENDED
from cli.watching import print_failure
from db.errors import LatheError
from db.settings import Settings, load_settings
from deploy.local import parts, report, stack, state
from deploy.local.parts import ROOT

JSON = dict[str, Any]
BASE = "tiny"
SHOWN_QUESTIONS = 3
# Of 20, the answers that must be known by heart for the demo to have succeeded.
LEARNT_SHARE = 0.9
ANSWER_TOKENS = 120
SHOWN_CHARACTERS = 160
WIDTH_OF_A_FILE = 140
CANCEL_SECONDS = 15


@dataclass
class Demo:
    """One run: what it knows, and how long each part of it took."""

    settings: Settings
    console: Console
    csv_file: Path
    name: str
    started_stack: bool = False
    job_id: str | None = None
    job_ended: bool = False
    timings: dict[str, float] = field(default_factory=dict)

    def run(self) -> int:
        self._introduce()
        with self._time("start the stack"):
            self._ensure_stack()
        with Client(self._api_url(), self.settings.api_key.get_secret_value()) as client:
            try:
                job = self._train(client)
                if job["status"] != "succeeded":
                    print_failure(client, job, self.console)
                    return ExitStatus.FAILED
                learnt = self._ask(client, str(job["result"]["model"]))
                self._print_artifacts(client, job)
                self._print_timings(client, job)
                self._print_what_next(str(job["result"]["model"]))
                return ExitStatus.OK if learnt else ExitStatus.FAILED
            finally:
                self._cancel_if_unfinished(client)

    # --- the stages

    def _introduce(self) -> None:
        self.console.print("[bold]Lathe's demo[/]: a CSV of 20 facts becomes a model that knows them.")
        self.console.print(
            f"The first run makes the base model `{BASE}` from scratch (some 90 s on two cores) and keeps it "
            f"in {self.settings.cache_dir}; then, and in every later run, the fine-tuning itself takes about "
            "a minute. Nothing is downloaded.\n",
            style="dim",
        )

    def _ensure_stack(self) -> None:
        running = state.running(self.settings.data_dir)
        if running is not None and running.ready:
            self.console.print(f"Using the stack that runs already (pid {running.pid}, {running.api_url}).")
            return
        self.started_stack = True
        code = stack.start(self.settings, report.for_terminal(), dies_with_us=True)
        if code != 0:
            self.started_stack = False
            raise SystemExit(code)

    def _api_url(self) -> str:
        running = state.running(self.settings.data_dir)
        return running.api_url if running is not None else parts.local_api_url(self.settings)

    def _train(self, client: Client) -> JSON:
        with self.csv_file.open("rb") as file:
            uploaded = client.upload(file, self.csv_file.name)
        self.console.print(f"\nPOST /v1/files  {self.csv_file.name}  ->  {uploaded['id']}", highlight=False)
        params = {"base_model": BASE, "training_file": uploaded["id"], "name": self.name}
        job = client.submit("fine_tune", params)
        self.job_id = job["id"]
        self.console.print(f"POST /v1/jobs   fine_tune {params}  ->  {job['id']}\n", highlight=False)
        with JobView(self.console) as view, self._time("the job, waiting included"):
            job = follow(client, job["id"], view, poll_seconds=0.5)
        self.job_ended = True
        return job

    def _ask(self, client: Client, tuned: str) -> bool:
        """Ask both models every question; show some, count all."""
        with self.csv_file.open(newline="", encoding="utf-8-sig") as file:
            facts = [(row["question"], row["answer"]) for row in csv.DictReader(file)]
        answers: dict[str, list[str]] = {}
        with self._time(f"ask {2 * len(facts)} questions"):
            for model in (BASE, tuned):
                with self.console.status(f"asking {model} …"):
                    answers[model] = [_answer(client, model, question) for question, _ in facts]
        table = Table(title="\nThe same questions to both", title_justify="left", title_style="bold")
        table.add_column("question", ratio=2)
        table.add_column(f"{BASE}, as it was", ratio=3, style="dim")
        table.add_column(f"{tuned}, fine-tuned", ratio=3)
        for number, (question, _) in enumerate(facts[:SHOWN_QUESTIONS]):
            table.add_row(question, *(_shown(answers[model][number]) for model in (BASE, tuned)))
        self.console.print(table)
        known = {model: _count_known(facts, answers[model]) for model in answers}
        for model, count in known.items():
            self.console.print(
                f"{model} knows {count} of {len(facts)} answers word for word.", highlight=False
            )
        learnt = known[tuned] >= LEARNT_SHARE * len(facts)
        if not learnt:
            self.console.print("That is too few: the training did not do its work.", style="red")
        return learnt

    def _print_artifacts(self, client: Client, job: JSON) -> None:
        table = Table(title="\nArtifacts", title_justify="left", title_style="bold")
        table.add_column("name")
        table.add_column("size", justify="right")
        table.add_column("sha256", overflow="fold")
        for row in client.job_rows(job["id"], "artifacts"):
            table.add_row(row["name"], size(row["bytes"]), row["sha256"])
        self.console.print(table)

    def _print_timings(self, client: Client, job: JSON) -> None:
        table = Table(title="\nWhere the time went", title_justify="left", title_style="bold")
        table.add_column("stage")
        table.add_column("time", justify="right")
        jobs = [client.job(job["waits_for"])] if job.get("waits_for") else []
        rows = [
            (f"{made['kind']}: {step['name']}", _took(step))
            for made in [*jobs, job]
            for step in made["steps"]
        ]
        first, *rest = self.timings.items()
        for stage, seconds in [first, *rows, *rest]:
            table.add_row(stage, duration(seconds))
        self.console.print(table)

    def _print_what_next(self, tuned: str) -> None:
        url = self._api_url()
        lathe = _typed_lathe()
        up = (
            f"{lathe} up --detach      # start the stack again; {lathe} down stops it\n  "
            if self.started_stack
            else ""
        )
        self.console.print(
            f"\nNext:\n  {up}{lathe} chat {tuned}\n  {lathe} job {self.job_id}\n"
            f"  {lathe} download {self.job_id}\n  {lathe} fine-tune --help\n"
            f"API      {url}   (its documentation: {url}/docs)\n"
            f"Flower   http://127.0.0.1:{self.settings.flower_port}   (the password: {lathe} status)\n"
            f"Data     {self.settings.data_dir}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    # --- the way out

    def stop(self) -> None:
        """Stop the stack that this run started; asked again, at once."""
        if not self.started_stack:
            return
        with self.console.status("stopping what was started …"):
            try:
                stack.stop(self.settings)
            except KeyboardInterrupt:
                stack.stop(self.settings)
        self.console.print("The stack is stopped.", style="dim")

    def _cancel_if_unfinished(self, client: Client) -> None:
        if self.job_id is None or self.job_ended:
            return
        self.console.print(f"Cancelling {self.job_id} …")
        with suppress(LatheError):
            client.steer(self.job_id, "cancel")
            deadline = time.monotonic() + CANCEL_SECONDS
            while client.job(self.job_id)["status"] not in ENDED and time.monotonic() < deadline:
                time.sleep(0.2)

    @contextmanager
    def _time(self, stage: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.timings[stage] = time.monotonic() - begun


def _answer(client: Client, model: str, question: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }
    return str(client.post("/v1/chat/completions", body)["choices"][0]["message"]["content"])


def _shown(answer: str) -> Text:
    text = " ".join(harmless(answer).split())
    return Text(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …")


def _count_known(facts: list[tuple[str, str]], answers: list[str]) -> int:
    return sum(answer.split() == fact.split() for (_, fact), answer in zip(facts, answers, strict=True))


def _took(step: JSON) -> float:
    if not step["started_at"] or not step["finished_at"]:
        return 0.0
    return float(step["finished_at"] - step["started_at"])


def _typed_lathe() -> str:
    """How the command is called from here: it is in .venv/bin, which may not be on the PATH."""
    beside = Path(sys.executable).with_name("lathe")
    found = shutil.which("lathe")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "lathe"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model on a CSV of facts, serve it, and ask it.")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "faq.csv", help="question,answer")
    parser.add_argument("--name", default="faq", help="the name the model will answer to")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
    code: int = ExitStatus.FAILED
    try:
        demo = Demo(load_settings(), console, options.data, options.name)
        try:
            code = demo.run()
        finally:
            demo.stop()
    except KeyboardInterrupt:
        console.print("Interrupted.")
        code = ExitStatus.INTERRUPTED
    except LatheError as error:
        console.print(Text(f"demo: {error.message}", "red"), soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
