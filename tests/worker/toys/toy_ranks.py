"""A step that several processes do together; `do` says what the second one does to it."""

import os
import signal
import time
from typing import Any

from db.errors import Exhausted
from worker.ranks import run_ranks
from worker.step import Step, Stopped
from worker.steps import together

PATIENCE_SECONDS = 60


def run(step: Step) -> dict[str, Any]:
    return run_ranks(step, 2, __name__, {"do": step.input.params["do"][step.input.step]})


def run_rank(step: Step, work: dict[str, Any]) -> dict[str, Any]:
    step.event("Working.")
    print("at work", flush=True)  # noqa: T201 - what a step prints is kept
    step.save_when_stopped()
    step.metrics(loss=float(together.from_first(lambda: 0.5)))
    step.progress(1, 2)
    if not together.is_first():
        BEHAVIOURS[work["do"]]()
    together.wait()
    if work["do"] == "until_stopped":
        while not together.agreed(step.stop_asked)[0]:
            time.sleep(0.01)
        step.event("Saved.")
        raise Stopped
    return {"first": together.is_first(), "ranks": together.count()}


def crash() -> None:
    raise RuntimeError("boom")


def be_killed() -> None:
    print("about to go", flush=True)  # noqa: T201
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust() -> None:
    raise Exhausted("The GPU's memory ran out.")


BEHAVIOURS = {
    "quick": lambda: None,
    "until_stopped": lambda: None,
    "crash": crash,
    "be_killed": be_killed,
    "exhaust": exhaust,
    "hang": lambda: time.sleep(PATIENCE_SECONDS),
}
