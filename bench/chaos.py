"""Whether jobs survive: `python -m bench.chaos [--jobs N] [--kills N] [--seed N] [--quick] [--json]`.

It starts a durable Postgres, a Valkey, two API processes and several workers on free ports of loopback, and
submits jobs of real steps over HTTP while it kills, freezes and floods each of these. A supervisor's part, to
start the dead again after half a second, is played here with the local stack's own processes. What became of
the jobs is judged by what their steps wrote and by the API's answers; anything but zero is exit status 1.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

import migrations
from bench.chaos_client import Client
from bench.goals import show_goals
from bench.havoc import KILLS, Harm, Havoc, plan
from bench.judge import Told, Verdict, judge, judge_submissions, pages, tell
from bench.ledger import LEDGER, Ledger, Line
from bench.recovery import ALL, figures, recoveries
from bench.stack import Stack, wait_for
from db.settings import STEP_MARKER, Settings
from deploy.local.process import Supervised
from serving.local_port import free_port
from worker.clock import host_seconds

WORKERS, APIS = 4, 2
CONCURRENCY = {"train": 2, "cpu": 2, "gpu": 2, "io": 2, "bulk": 0, "ask": 0, "hooks": 1}
PACE_SECONDS = 1.3  # from one harm to the next
HEAD_START = 6  # jobs that are submitted before the first harm
NO_TARGET_SECONDS = 5.0
# Without a sign of life for so many leases, the jobs that have not ended are stuck.
PATIENCE_LEASES = 8
RECOVERY_GOAL_LEASES = 2
SENTENCES = 10  # of each kind of violation
# What says in a worker's or an API's log that it met with what it does not know.
UNKNOWN_ERRORS = ("attempt_broken", "sweep_broken", "housekeeping_broken", "request_failed", "Traceback")


class Chaos:
    """One run, from the servers' start to the last job's end."""

    def __init__(self, folder: Path, ending: contextlib.ExitStack, options: argparse.Namespace) -> None:
        self._options = options
        self._dice = random.Random(options.seed)  # noqa: S311
        self.ledger = Ledger(folder / "ledger")
        os.environ[LEDGER] = str(self.ledger.path)  # every process of the run inherits it
        self.stack = Stack(folder, ending)
        url = self.stack.database("chaos")
        migrations.upgrade(url)
        self.ports = {f"api-{number}": free_port() for number in range(APIS)}
        settings = self.stack.settings("chaos", url, self.ports["api-0"]) | impatience(options.lease)
        self.apis = [
            self.stack.python(name, "api", settings | {"LATHE_API_PORT": str(port)})
            for name, port in self.ports.items()
        ]
        self.workers = [
            self.stack.python(f"worker-{number}", "bench.chaos_worker", settings) for number in range(WORKERS)
        ]
        for port in self.ports.values():
            wait_for(port)
        self.client = Client(self.ports)
        ending.callback(self.client.close)
        self.havoc = Havoc(
            self.stack, self.apis, self.workers,
            redis_url=settings["REDIS_URL"], lease_seconds=options.lease, dice=self._dice,
        )  # fmt: skip
        self.harms: list[Harm] = []
        self.deaths: list[str] = []  # of servers that nobody killed
        self.attempts: Counter[str] = Counter()

    @property
    def servers(self) -> list[Supervised]:
        return [self.stack.postgres, self.stack.valkey, *self.apis, *self.workers]

    def run(self) -> None:
        """Do all the harm, then wait until every job has ended, or nothing moves any more."""
        kinds = plan(self._options.kills, self._dice)
        total, began = len(kinds), host_seconds()
        while kinds:
            share = 1 - len(kinds) / total
            self.client.want(min(self._options.jobs, HEAD_START + int(share * self._options.jobs)))
            self._tick()
            if host_seconds() - began >= PACE_SECONDS * (total - len(kinds)):
                self._harm(kinds)
        self.client.want(self._options.jobs)
        self._settle()

    def _harm(self, kinds: list[str]) -> None:
        """Do the next harm that finds something to hit."""
        deadline = host_seconds() + NO_TARGET_SECONDS
        while host_seconds() < deadline:
            for position, kind in enumerate(kinds):
                harm = self.havoc.do(kind)
                if harm is not None:
                    self.harms.append(self._with_the_waiting(harm))
                    del kinds[position]
                    return
                if position >= 3:
                    break
            self._tick()
        # Nothing runs that these could hit: a worker can always be hit.
        kinds[0] = "worker" if kinds[0] in KILLS else "doorbells"

    def _tick(self) -> None:
        """A supervisor's turn, and a little time."""
        for server in self.servers:
            if server.alive and server.has_ended():
                ours = server.pid in self.havoc.ended_by_us
                note = server.collect().note
                if not ours:
                    self.deaths.append(f"{server.part.name}: {note}")
                # A killer is no crash loop, for which a supervisor would wait longer each time.
                server.deaths_in_a_row = 0
            if not server.alive and time.monotonic() >= server.start_at:
                server.restart()
        self.havoc.wake()
        time.sleep(0.05)

    def _with_the_waiting(self, harm: Harm) -> Harm:
        """A harm to what all need hits the jobs whose next step was waiting to begin."""
        if not harm.everywhere:
            return harm
        self.ledger.read()
        places = {job: self.ledger.waits_at(job) for job in list(self.client.jobs.values())}
        return replace(harm, hits={job: place for job, place in places.items() if place is not None})

    def _settle(self) -> None:
        """Wait until every job has ended, or nothing has moved for long."""
        moved, lines = host_seconds(), -1
        while host_seconds() - moved < PATIENCE_LEASES * self._options.lease:
            self._tick()
            if (now := self.ledger.read()) != lines:
                moved, lines = host_seconds(), now
            answered = len(self.client.jobs) + len(self.client.unanswered) >= self._options.jobs
            if answered and not self._unfinished():
                return
            time.sleep(0.2)

    def _unfinished(self) -> bool:
        return any(
            self.client.get("/v1/jobs", status=status, limit=1)["data"] for status in ("queued", "running")
        )

    def verdict(self) -> Verdict:
        verdict = Verdict()
        for sentence in self.client.unanswered:
            verdict.add("lost", f"never answered: {sentence}")
        for sentence in self.client.contradictions:
            verdict.add("run twice", sentence)
        judge_submissions(verdict, self.client.jobs, pages(self.client.get, "/v1/jobs"))
        self.ledger.read()  # a job can have ended since it was read last
        lines: dict[str, list[Line]] = defaultdict(list)
        for line in self.ledger.lines:
            lines[line["job"]].append(line)
        for name, job_id in self.client.jobs.items():
            told = tell(self.client.get, self.client.bytes_of, name, job_id)
            if told is None:
                verdict.add("lost", f"{name} was answered with {job_id}, and is not known")
                continue
            self.attempts.update(outcomes(told))
            judge(verdict, told, lines[job_id])
        for process in left_within(self._options.lease, STEP_MARKER):
            verdict.add("processes left", f"after all jobs had ended: {process}")
        return verdict

    def unknown_errors(self) -> dict[str, int]:
        """How often the logs of API and workers tell of an error that nobody foresaw."""
        text = "".join(server.log.read_text(errors="replace") for server in (*self.apis, *self.workers))
        return {word: text.count(word) for word in UNKNOWN_ERRORS if word in text}


def impatience(lease_seconds: float) -> dict[str, str]:
    """Settings in the product's own proportions; a step may be silent for two leases."""
    usual = Settings.model_fields
    share = lease_seconds / usual["lease_seconds"].default
    return {
        "LATHE_LEASE_SECONDS": str(lease_seconds),
        "LATHE_HEARTBEAT_SECONDS": str(usual["heartbeat_seconds"].default * share),
        "LATHE_SWEEP_SECONDS": str(usual["sweep_seconds"].default * share),
        "LATHE_STALL_SECONDS": str(lease_seconds * 2),
        **{f"LATHE_{queue.upper()}_CONCURRENCY": str(number) for queue, number in CONCURRENCY.items()},
    }


def outcomes(told: Told) -> Counter[str]:
    return Counter(str(attempt["outcome"]) for step in told.job["steps"] for attempt in step["attempts"])


def left_within(seconds: float, variable: str) -> list[str]:
    """The processes of this run, with `variable` in their environment, that are still there after a while."""
    deadline = time.monotonic() + seconds
    while (found := processes(variable)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def processes(variable: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            ours = environment.get(LEDGER) == os.environ[LEDGER] and process.pid != os.getpid()
            if ours and variable in environment and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found


def chaos(options: argparse.Namespace) -> dict[str, Any]:
    """Run once, and tell what was done, what happened that must not, and how fast all went on."""
    folder = Path(tempfile.mkdtemp(prefix="lathe-chaos-"))
    began, keep = time.monotonic(), options.keep
    try:
        with contextlib.ExitStack() as ending:
            run = Chaos(folder, ending, options)
            # Woken before anybody is asked to stop; then all at once, for each may take a while.
            ending.callback(ask_to_stop, *run.apis, *run.workers)
            ending.callback(lambda: run.havoc.wake(everybody=True))
            run.run()
            verdict = run.verdict()
            errors = run.unknown_errors()
        for process in left_within(2, LEDGER):
            verdict.add("processes left", f"after the stack's end: {process}")
        keep = keep or not verdict.clean
    except Exception:
        keep = True
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    found = recoveries(run.harms, run.ledger.began, run.client.answered)
    return {
        "seed": options.seed,
        "jobs": options.jobs,
        "lease_seconds": options.lease,
        "wall_seconds": round(time.monotonic() - began, 1),
        "load_average": os.getloadavg()[0],
        "folder": str(folder) if folder.exists() else None,
        "kills": sum(harm.kind in KILLS for harm in run.harms),
        "harms": dict(Counter(harm.kind for harm in run.harms)),
        "attempts": dict(run.attempts),
        "violations": verdict.found,
        "recovery": {kind: figures(seconds) for kind, seconds in found.items()},
        "died_by_themselves": run.deaths,
        "unknown_errors": errors,
    }


def ask_to_stop(*servers: Supervised) -> None:
    for server in servers:
        server.ask_to_stop()


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    limit = RECOVERY_GOAL_LEASES * result["lease_seconds"]
    rows = [(kind, len(found), "0", not found) for kind, found in result["violations"].items()]
    unforeseen = {
        "died by themselves": len(result["died_by_themselves"]),
        "unknown errors": sum(result["unknown_errors"].values()),
    }
    p99 = result["recovery"].get(ALL, {"p99": 0.0})["p99"]
    rows += [(what, count, "0", count == 0) for what, count in unforeseen.items()]
    rows.append(("recovery p99, s", p99, f"<= {limit:g}, two leases", p99 <= limit))
    return [dict(zip(("what", "result", "goal", "met"), row, strict=True)) for row in rows]


def show(result: dict[str, Any]) -> None:
    print(*(f"{name}={result[name]}" for name in ("seed", "jobs", "kills", "lease_seconds", "wall_seconds")))
    print("harms    ", *(f"{kind}={number}" for kind, number in result["harms"].items()))
    print("attempts ", *(f"{outcome}={number}" for outcome, number in result["attempts"].items()))
    for kind, row in sorted(result["recovery"].items(), key=lambda found: found[0] == ALL):
        print("recovery ", kind.ljust(15), *(f"{name}={value}" for name, value in row.items()))
    for name in ("died_by_themselves", "unknown_errors"):
        if result[name]:
            print(name, result[name])
    show_goals(result["goals"])
    for found in result["violations"].values():
        for sentence in found[:SENTENCES]:
            print("  ", sentence)
    if result["folder"]:
        print("logs and ledger are kept in", result["folder"])


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    lease = Settings.model_fields["lease_seconds"].default
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, help="how many jobs (500; quick: 40)")
    parser.add_argument("--kills", type=int, help="how many kills (1000; quick: 60)")
    parser.add_argument("--seed", type=int, default=1, help="of what is hit, in which order")
    parser.add_argument("--lease", type=float, default=lease, help=f"seconds (the product's own: {lease})")
    parser.add_argument("--quick", action="store_true", help="two minutes, for a look")
    parser.add_argument("--keep", action="store_true", help="keep logs and ledger, as after a violation")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    options.jobs = options.jobs or (40 if options.quick else 500)
    options.kills = options.kills or (60 if options.quick else 1000)
    return options


def main() -> int:
    options = parse()
    # As Ctrl-C: everything that was started ends.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    result = chaos(options)
    result["goals"] = goals(result)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0 if all(goal["met"] for goal in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
