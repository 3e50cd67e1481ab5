"""How soon a step begins: `python -m bench.warm_steps [--quick] [--seed N] [--json]`.

For each group of `worker.steps.WARM`: a step that has loaded all that its group needs and then ends, as a
new interpreter and as a fork of a process that has it, by turns. Wall from the start to the end, and
CPU-seconds of the process that does the work. What the fork server takes is told beside: it is paid once.
A missed goal is exit status 1.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from bench.goals import run_bench, show_goals
from bench.spent import cpu_seconds
from db.settings import load_settings
from worker.child import Child
from worker.clock import host_seconds
from worker.launch import ForkServer, Launch, Launcher, Spawned
from worker.step import Message, StepInput
from worker.step_input import step_settings
from worker.steps import EMBEDDING, READING, TRAINING, Warm

ROUNDS = {"quick": 3, "full": 9}
GROUPS = {"reading": READING, "embedding": EMBEDDING, "training": TRAINING}
STEP = "bench.warm_step"
GOAL = 0.2  # of a new interpreter's wall and CPU-seconds
READY_WITHIN_SECONDS = 300
JSON = dict[str, Any]


def measure(warm: Warm, rounds: int, dice: random.Random, folder: Path) -> JSON:
    """Medians of a group's steps, spawned and forked."""
    modules = [*warm.modules(embedded_by_server=False)]
    server = ForkServer([*modules, STEP], threads=load_settings().threads, idle_seconds=600)
    launcher = Launcher({STEP: server})
    try:
        ready = _until_ready(server)
        taken: dict[str, list[tuple[float, float]]] = {"spawned": [], "forked": []}
        ways: list[tuple[str, Launch]] = [("spawned", Spawned), ("forked", launcher)]
        for _ in range(rounds):
            for name, launch in dice.sample(ways, 2):
                taken[name].append(_run_step(modules, launch, folder))
    finally:
        launcher.close()
    return {"server": ready} | {name: _medians(rows) for name, rows in taken.items()}


def _until_ready(server: ForkServer) -> JSON:
    began = time.monotonic()
    while not server.ready:
        if server.unusable or time.monotonic() - began > READY_WITHIN_SECONDS:
            sys.exit("bench.warm_steps: the fork server does not get ready")
        time.sleep(0.01)
    wall = time.monotonic() - began
    [process] = [each for each in psutil.Process().children() if "worker.fork_server" in each.cmdline()]
    cpu = cpu_seconds([process])
    return {"wall": round(wall, 2), "cpu": round(cpu, 2), "rss_mb": round(process.memory_info().rss / 1e6)}


def _run_step(modules: list[str], launch: Launch, folder: Path) -> tuple[float, float]:
    """Wall, and CPU-seconds of the process that does the work."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        step_input = StepInput(
            job_id="job-bench",
            kind="ingest",
            step="extract",
            attempt=1,
            params={"modules": modules},
            folder=Path(work),
            settings=step_settings(load_settings()),
        )
        began = time.monotonic()
        child = Child(
            STEP,
            step_input,
            deadline=host_seconds() + READY_WITHIN_SECONDS,
            marker="job-bench/extract/1",
            log_path=folder / "printed.log",
            environment={},
            launch=launch,
        )
        messages: list[Message] = []
        while child.exit is None:
            messages += child.listen(0.25)
        wall = time.monotonic() - began
        child.close()
    [result] = [message["result"] for message in messages if message["type"] == "result"]
    return wall, result["cpu_seconds"]


def _medians(rows: list[tuple[float, float]]) -> JSON:
    wall, cpu = (statistics.median(each) for each in zip(*rows, strict=True))
    return {"wall": round(wall, 3), "cpu": round(cpu, 3)}


def bench(*, quick: bool, seed: int) -> JSON:
    dice = random.Random(seed)  # noqa: S311
    with tempfile.TemporaryDirectory(prefix="lathe-bench-") as folder:
        rounds = ROUNDS["quick" if quick else "full"]
        measured = {name: measure(warm, rounds, dice, Path(folder)) for name, warm in GROUPS.items()}
    goals = [_goal(name, figures, what) for name, figures in measured.items() for what in ("wall", "cpu")]
    return {"measured": measured, "goals": goals}


def _goal(name: str, figures: JSON, what: str) -> JSON:
    share = figures["forked"][what] / figures["spawned"][what]
    label = f"{name}: {what} of a forked step, of a new interpreter's"
    return {"what": label, "result": round(share, 3), "goal": f"≤ {GOAL}", "met": share <= GOAL}


def show(result: JSON) -> None:
    for name, figures in result["measured"].items():
        server, spawned, forked = figures["server"], figures["spawned"], figures["forked"]
        print(
            f"{name}: a new interpreter {spawned['wall']:.2f} s ({spawned['cpu']:.2f} CPU-s), forked "
            f"{forked['wall']:.3f} s ({forked['cpu']:.3f}); the fork server, once, {server['wall']:.1f} s "
            f"({server['cpu']:.1f}), {server['rss_mb']} MB"
        )
    show_goals(result["goals"])


if __name__ == "__main__":
    sys.exit(run_bench(__doc__, bench, show, quick="three rounds in place of nine", seed="of the order"))
