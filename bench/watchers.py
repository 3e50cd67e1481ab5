"""What watching jobs costs: `python -m bench.watchers [--quick] [--seed N] [--json]`.

A thousand streams of server-sent events on one API process, over a Postgres that is restarted in between:
the memory of each, how soon after an event's commit it is told, the CPU of waiting against that of asking
again and again, and whether anything was missed or told twice. A missed goal is exit status 1.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import event, func, select
from sqlalchemy.exc import OperationalError

from api.__main__ import raise_file_limit
from bench.goals import show_goals
from bench.stack import Stack, end, percentile
from db.models import Event
from db.queries.jobs import add_event, create_job, end_job, get_job
from db.session import SessionFactory, make_engine, make_session_factory, transaction
from db.states import JobKind, JobStatus

WATCHERS, JOBS = 1000, 100
PROJECT = "default"
RATE = 40  # events/s, over all jobs: what twenty trainings say
POLLERS = 50
POLL_SECONDS = 1.0  # as `lathe watch` does
PATIENCE_SECONDS = 60
KILOBYTES_GOAL = 100
DELAY_GOAL_MS = 500  # half of what asking once a second costs
CPU_GOAL = 10


@dataclass
class Watcher:
    """One client: what it was told, and when."""

    job_id: str
    heard: list[tuple[int, float]] = field(default_factory=list)  # an event's number, and the time
    connections: int = 0
    ended: bool = False

    async def watch(self, port: int) -> None:
        """Follow the job to its end, from the last event on should the stream break."""
        while not self.ended:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._stream(port)

    async def _stream(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        seen = f"last-event-id: {self.heard[-1][0]}\r\n" if self.heard else ""
        head = f"GET /v1/jobs/{self.job_id}/events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        writer.write(f"{head}accept: text/event-stream\r\n{seen}\r\n".encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"retry:"):
                    self.connections += 1
                elif line.startswith(b"id: "):
                    self.heard.append((int(line.removeprefix(b"id: event-")), time.time()))
                elif line.startswith(b"event: end"):
                    self.ended = True
                    return
        finally:
            writer.close()


class Writer:
    """Lets jobs say things as workers do, and keeps when each event was committed."""

    def __init__(self, factory: SessionFactory, jobs: list[str], dice: random.Random) -> None:
        self._factory, self._jobs, self._dice = factory, jobs, dice
        self.committed: dict[int, float] = {}
        event.listen(factory, "after_commit", lambda session: session.info.update(at=time.time()))

    def write(self, number: int) -> None:
        for turn in range(number):
            with contextlib.suppress(
                OperationalError
            ):  # Postgres may be away; what was not written is not due
                self._say(self._dice.choice(self._jobs), f"word {turn}")
            time.sleep(1 / RATE)

    def _say(self, job_id: str, message: str) -> None:
        with transaction(self._factory) as session:
            get_job(session, job_id, project_id=PROJECT, lock=True)
            add_event(session, job_id, message)
            session.flush()
            number = session.scalar(select(func.max(Event.id)).where(Event.job_id == job_id)) or 0
        self.committed[number] = session.info["at"]

    def end_all(self) -> None:
        for job_id in self._jobs:
            with transaction(self._factory) as session:
                end_job(session, get_job(session, job_id, project_id=PROJECT, lock=True), JobStatus.CANCELLED)


async def poll(port: int, job_id: str, seconds: float) -> int:
    """Ask for a job's new events once a second, over one connection. Returns how often."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked, stop = 0, time.monotonic() + seconds
    while time.monotonic() < stop:
        began = time.monotonic()
        writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        asked += 1
        await asyncio.sleep(max(0.0, began + POLL_SECONDS - time.monotonic()))
    writer.close()
    return asked


def cpu_seconds(server: psutil.Process) -> float:
    times = server.cpu_times()
    return times.user + times.system


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} has not come about in {PATIENCE_SECONDS} s")
        await asyncio.sleep(0.1)


@dataclass
class Run:
    """One API, its jobs, and who watches them."""

    stack: Stack
    port: int
    server: psutil.Process
    writer: Writer
    jobs: list[str]
    watchers: list[Watcher]

    async def all(self, *, idle_seconds: float, words: int) -> dict[str, float]:
        measured = {"polled_cpu_seconds_a_minute": round(await self._polling(idle_seconds / 2), 1)}
        memory = self.server.memory_info().rss
        streams = [asyncio.create_task(watcher.watch(self.port)) for watcher in self.watchers]
        await until(lambda: all(watcher.connections for watcher in self.watchers), "every stream")
        await asyncio.sleep(2)
        grown = self.server.memory_info().rss - memory
        measured["kilobytes_a_watcher"] = round(grown / len(streams) / 1024, 1)
        measured["idle_cpu_seconds_a_minute"] = round(await self._waiting(idle_seconds), 2)
        measured |= await self._delays(words)
        await self._restart_amid(words // 2)
        await asyncio.to_thread(self.writer.end_all)
        await asyncio.wait_for(asyncio.gather(*streams), PATIENCE_SECONDS)
        measured["deliveries"] = self._heard()
        measured["streams_opened"] = sum(watcher.connections for watcher in self.watchers)
        return measured

    async def _polling(self, seconds: float) -> float:
        """CPU-seconds a minute, were each watcher to ask once a second; from what a few of them cost."""
        await asyncio.gather(*(poll(self.port, job_id, 2.0) for job_id in self.jobs[:POLLERS]))  # warms up
        before = cpu_seconds(self.server)
        asked = sum(await asyncio.gather(*(poll(self.port, job, seconds) for job in self.jobs[:POLLERS])))
        return (cpu_seconds(self.server) - before) / asked / POLL_SECONDS * 60 * len(self.watchers)

    async def _waiting(self, seconds: float) -> float:
        before = cpu_seconds(self.server)
        await asyncio.sleep(seconds)
        return (cpu_seconds(self.server) - before) / seconds * 60

    async def _delays(self, words: int) -> dict[str, float]:
        await asyncio.to_thread(self.writer.write, words)
        due = len(self.writer.committed) * len(self.watchers) // len(self.jobs)
        await until(lambda: self._heard() >= due, "every word")
        committed = self.writer.committed
        delays = [at - committed[number] for watcher in self.watchers for number, at in watcher.heard]
        shares = (("p50", 0.5), ("p99", 0.99))
        return {f"delay_{name}_ms": round(percentile(delays, share) * 1000, 1) for name, share in shares}

    async def _restart_amid(self, words: int) -> None:
        writing = threading.Thread(target=self.writer.write, args=(words,))
        writing.start()
        await asyncio.sleep(words / RATE / 4)
        await asyncio.to_thread(end, self.stack.postgres)
        self.stack.postgres.restart()
        await asyncio.to_thread(writing.join)

    def _heard(self) -> int:
        return sum(len(watcher.heard) for watcher in self.watchers)


def measure_watchers(stack: Stack, *, quick: bool, seed: int) -> dict[str, Any]:
    """Watch, write and restart, on an API and a database of its own.

    Returns:
        figures; `missed` and `doubled` count deliveries against what the database holds in the end.
    """
    raise_file_limit()
    port, api, environment = stack.lathe("watchers")
    factory = make_session_factory(make_engine(environment["DATABASE_URL"]))
    with transaction(factory) as session:
        made = [
            create_job(session, project_id=PROJECT, kind=JobKind.PRETRAIN, params={"name": f"w{number}"})
            for number in range(JOBS)
        ]
        jobs = [job.id for job in made]
    writer = Writer(factory, jobs, random.Random(seed))  # noqa: S311
    watchers = [Watcher(jobs[number % JOBS]) for number in range(WATCHERS)]
    run = Run(stack, port, psutil.Process(api.pid), writer, jobs, watchers)
    idle_seconds, words = (10, 200) if quick else (60, 1200)
    measured: dict[str, Any] = asyncio.run(run.all(idle_seconds=idle_seconds, words=words))
    with transaction(factory) as session:
        rows = session.execute(select(Event.job_id, Event.id).order_by(Event.id)).all()
    said: dict[str, list[int]] = {job_id: [] for job_id in jobs}
    for job_id, number in rows:
        said[job_id].append(number)
    measured |= {"missed": 0, "doubled": 0, "out_of_order": 0}
    for watcher in watchers:
        numbers = [number for number, _ in watcher.heard]
        measured["missed"] += len(set(said[watcher.job_id]) - set(numbers))
        measured["doubled"] += len(numbers) - len(set(numbers))
        measured["out_of_order"] += numbers != sorted(numbers)
    return measured


def goals_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    wrong = measured["missed"] + measured["doubled"] + measured["out_of_order"]
    ratio = measured["polled_cpu_seconds_a_minute"] / max(0.01, measured["idle_cpu_seconds_a_minute"])
    memory, delay = measured["kilobytes_a_watcher"], measured["delay_p99_ms"]
    goals = [
        ("events missed, doubled or out of order", wrong, "0", wrong == 0),
        ("memory of a watcher, kB", memory, f"<= {KILOBYTES_GOAL}", memory <= KILOBYTES_GOAL),
        ("commit to watcher p99, ms", delay, f"<= {DELAY_GOAL_MS}", delay <= DELAY_GOAL_MS),
        ("CPU of polling against waiting", round(ratio, 1), f">= {CPU_GOAL}", ratio >= CPU_GOAL),
    ]
    return [dict(zip(("what", "result", "goal", "met"), goal, strict=True)) for goal in goals]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, for a look")
    parser.add_argument("--seed", type=int, default=1, help="of which job speaks when")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lathe-bench-"))
    try:
        with contextlib.ExitStack() as ending:
            measured = measure_watchers(Stack(folder, ending), quick=options.quick, seed=options.seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    goals = goals_of(measured)
    if options.json:
        print(
            json.dumps({"seed": options.seed, "watchers": WATCHERS, "jobs": JOBS, **measured, "goals": goals})
        )
    else:
        print(*(f"{name}={value}" for name, value in measured.items()))
        show_goals(goals)
    return 0 if all(goal["met"] for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
