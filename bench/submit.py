"""How fast Lathe takes jobs, and how soon they start: `python -m bench.submit [--quick] [--seed N] [--json]`.

It starts a durable Postgres, a Valkey and every server itself, each server one uvicorn process. Runs are
interleaved, medians are shown, each with its goal; a missed goal is exit status 1.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg2

from bench.goals import show_goals
from bench.load import Measured, measure
from bench.stack import Stack, percentile, wait_for
from db.session import make_engine, make_session_factory, transaction
from deploy.local.parts import ROOT
from deploy.local.process import Supervised
from serving.local_port import free_port
from worker.claim import claim_step

CONNECTIONS = 32
RATIO_GOAL = 1.5
CLAIM_GOAL_MS = 50
HISTORY_GOAL = 1.25
FAQ = ROOT / "examples" / "faq.csv"
HISTORY = """
    SET LOCAL session_replication_role = replica;
    INSERT INTO jobs (id, project_id, kind, status, params, priority, max_attempts, finished_at)
    SELECT 'job-' || lpad(n::text, 32, '0'), 'default', 'pretrain', 'succeeded', '{}', 0, 3, now()
    FROM generate_series(1, 100000) AS n;
    INSERT INTO steps (job_id, name, position, queue, status, attempt, failures, finished_at)
    SELECT 'job-' || lpad(n::text, 32, '0'), 'train', 0, 'train', 'succeeded', 1, 0, now()
    FROM generate_series(1, 100000) AS n;
"""
BASE_MODEL = """
    INSERT INTO models (id, project_id, name) VALUES ('model-base', 'default', 'base');
    INSERT INTO model_versions (id, model_id, number, weights, details)
    VALUES ('version-base', 'model-base', 1, 'models/base', '{}');
"""
CLAIMS = """
    SELECT extract(epoch FROM attempts.started_at),
           extract(epoch FROM (SELECT min(created_at) FROM events
                               WHERE job_id = jobs.id AND message = 'Working.'))
    FROM jobs JOIN steps ON steps.job_id = jobs.id JOIN attempts ON attempts.step_id = steps.id
    WHERE jobs.id = %s AND jobs.finished_at IS NOT NULL AND attempts.number = 1
"""


@dataclass(frozen=True)
class Target:
    """A server, and what jobs are posted to it."""

    port: int
    server: Supervised
    environment: Mapping[str, str] = field(default_factory=dict)
    kind: str = "pretrain"
    params: Mapping[str, object] = field(default_factory=dict)

    def measure(self, number: int, prefix: str) -> Measured:
        pid = self.server.pid
        assert pid is not None
        options: dict[str, Any] = {"number": number, "connections": CONNECTIONS, "prefix": prefix}
        return measure(self.port, pid, kind=self.kind, params=self.params, **options)


def peer(stack: Stack, app: str, database_url: str) -> Target:
    """Start one of the servers that Lathe is measured against."""
    port = free_port()
    options = ["--port", str(port), "--no-access-log", "--log-level", "warning"]
    environment = {"PEER_DATABASE_URL": database_url, "PEER_REDIS_URL": stack.redis_url}
    server = stack.python(f"peer-{app}", "uvicorn", environment, f"bench.peers:{app}", *options)
    wait_for(port)
    return Target(port, server)


def fine_tune(stack: Stack) -> Target:
    """Start an API with a base model and an uploaded file, which every submit looks up and checks."""
    port, server, environment = stack.lathe("lathe_fine_tune", prepare=BASE_MODEL)
    with FAQ.open("rb") as file:
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/files",
            files={"file": (FAQ.name, file)},
            data={"purpose": "fine-tune"},
            trust_env=False,
        )
    params = {"base_model": "base", "training_file": answer.raise_for_status().json()["id"]}
    return Target(port, server, environment, "fine_tune", params)


def submits(targets: Mapping[str, Target], *, rounds: int, number: int, dice: random.Random) -> Any:
    """Measure every server once a round, in an order of chance."""
    runs: dict[str, list[Measured]] = {name: [] for name in targets}
    for turn in range(rounds + 1):
        for name in dice.sample(sorted(targets), len(targets)):
            amount = number if turn else CONNECTIONS * 2  # the first round warms up, and is not counted
            run = targets[name].measure(amount, f"{name.replace('_', '-')}-{turn}")
            if turn:
                runs[name].append(run)
    return {
        name: {
            "submits_per_second": round(statistics.median(run.rate for run in done), 1),
            "p50_ms": round(statistics.median(percentile(run.latencies, 0.5) for run in done) * 1000, 2),
            "p99_ms": round(statistics.median(percentile(run.latencies, 0.99) for run in done) * 1000, 2),
            "server_cpu_ms_each": round(statistics.median(run.cpu / number for run in done) * 1000, 3),
            "wall_seconds": round(statistics.median(run.wall for run in done), 2),
        }
        for name, done in runs.items()
    }


def claimer(target: Target, ending: contextlib.ExitStack) -> Callable[[], object]:
    """What claims one step as a worker does, by a connection of its own."""
    engine = make_engine(target.environment["DATABASE_URL"])
    ending.callback(engine.dispose)
    factory = make_session_factory(engine)

    def claim() -> None:
        with transaction(factory) as session:
            assert claim_step(session, "train", worker="bench", host="bench", lease_seconds=600) is not None

    return claim


def lister(target: Target, ending: contextlib.ExitStack) -> Callable[[], object]:
    """What asks for a page of jobs."""
    client = httpx.Client(base_url=f"http://127.0.0.1:{target.port}", trust_env=False)
    ending.callback(client.close)
    return lambda: client.get("/v1/jobs").raise_for_status()


def medians(targets: Mapping[str, Target], number: int) -> dict[str, dict[str, float]]:
    """Claim a step and list jobs on one server after the other, all with as many jobs queued."""
    with contextlib.ExitStack() as ending:
        works = {
            name: {"claim_ms": claimer(target, ending), "list_ms": lister(target, ending)}
            for name, target in targets.items()
        }
        taken: dict[str, dict[str, list[float]]] = {
            name: {what: [] for what in of} for name, of in works.items()
        }
        for _ in range(number):
            for name, of in works.items():
                for what, work in of.items():
                    began = time.perf_counter()
                    work()
                    taken[name][what].append((time.perf_counter() - began) * 1000)
    return {
        name: {what: round(statistics.median(values), 3) for what, values in of.items()}
        for name, of in taken.items()
    }


def claims(stack: Stack, number: int) -> dict[str, float]:
    """Submit one job at a time to an idle worker, and read from the rows when it was claimed and spoke."""
    port, _, environment = stack.lathe("idle")
    stack.python("worker", "bench.quick_worker", environment)
    to_claim, to_message = [], []
    url = f"http://127.0.0.1:{port}"
    connection = psycopg2.connect(environment["DATABASE_URL"].replace("+psycopg2", ""))
    connection.autocommit = True
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client, connection.cursor() as cursor:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        for turn in range(number + 2):
            sent = time.time()
            answer = client.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": f"idle-{turn}"}})
            job_id = answer.json()["id"]
            while True:
                cursor.execute(CLAIMS, (job_id,))
                if (row := cursor.fetchone()) is not None:
                    break
                time.sleep(0.02)
            if turn >= 2:  # connections are made by then
                to_claim.append(float(row[0]) - sent)
                to_message.append(float(row[1] - row[0]))
    connection.close()
    return {
        f"{name}_{label}_ms": round(percentile(values, share) * 1000, 2)
        for name, values in (("submit_to_claim", to_claim), ("claim_to_message", to_message))
        for label, share in (("p50", 0.5), ("p99", 0.99))
    }


def measure_all(stack: Stack, *, quick: bool, seed: int) -> dict[str, Any]:
    rounds, number, jobs = (2, 200, 10) if quick else (5, 600, 100)
    peers = stack.database("peers")
    targets = {app: peer(stack, app, peers) for app in ("with_row", "bare")}
    targets |= {
        "lathe": Target(*stack.lathe("lathe")),
        "lathe_100k": Target(*stack.lathe("lathe_100k", prepare=HISTORY)),
        "lathe_fine_tune": fine_tune(stack),
    }
    return {
        "seed": seed,
        "rounds": rounds,
        "requests": number,
        "claims": jobs,
        "load_average_before": os.getloadavg()[0],
        "submits": submits(targets, rounds=rounds, number=number, dice=random.Random(seed)),  # noqa: S311
        "medians": medians({name: targets[name] for name in ("lathe", "lathe_100k")}, jobs),
        "idle": claims(stack, jobs),
        "load_average_after": os.getloadavg()[0],
    }


def goals_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    submitted, of, idle = found["submits"], found["medians"], found["idle"]
    ours, peers, history = submitted["lathe"], submitted["with_row"], submitted["lathe_100k"]
    ratio = ours["submits_per_second"] / peers["submits_per_second"]
    goals: list[tuple[str, float, str, bool]] = [
        ("submits/s against the peer with a row", ratio, f">= {RATIO_GOAL}", ratio >= RATIO_GOAL)
    ]
    claim = idle["submit_to_claim_p99_ms"]
    goals.append(("submit to claim p99, ms", claim, f"<= {CLAIM_GOAL_MS}", claim <= CLAIM_GOAL_MS))
    slower = {"submit": history["p50_ms"] / ours["p50_ms"]}
    slower |= {
        what.removesuffix("_ms"): of["lathe_100k"][what] / value for what, value in of["lathe"].items()
    }
    goals += [
        (f"{what} p50 with 100,000 finished jobs", times, f"<= {HISTORY_GOAL}", times <= HISTORY_GOAL)
        for what, times in slower.items()
    ]
    return [
        {"what": what, "result": round(result, 2), "goal": goal, "met": met}
        for what, result, goal, met in goals
    ]


def bench(*, quick: bool, seed: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp(prefix="lathe-bench-"))
    try:
        with contextlib.ExitStack() as ending:
            found = measure_all(Stack(folder, ending), quick=quick, seed=seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found | {"goals": goals_of(found)}


def show(result: Mapping[str, Any]) -> None:
    for name, row in {**result["submits"], "idle": result["idle"]}.items():
        print(name.ljust(16), *(f"{field}={value}" for field, value in row.items()))
    for name, row in result["medians"].items():
        print(name.ljust(16), *(f"{field}={value}" for field, value in row.items()))
    show_goals(result["goals"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, for a look")
    parser.add_argument("--seed", type=int, default=1, help="of the order of runs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args()
    result = bench(quick=options.quick, seed=options.seed)
    if options.json:
        print(json.dumps(result))
    else:
        show(result)
    return 0 if all(goal["met"] for goal in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
