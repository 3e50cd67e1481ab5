"""What asking a model through Lathe adds to asking its server: `python -m bench.serving [--quick] [--json]`.

A paced stand-in for that server, the API and the clients are processes of their own, over a durable Postgres.
Each run is done straight to the stand-in and through the API, interleaved; a missed goal is exit status 1.
`--only` does some of its parts.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop

from api.__main__ import raise_file_limit
from bench.goals import show_goals
from bench.serving_api import TASKS
from bench.serving_batch import goals_of_batches, told_of_batches
from bench.spent import cpu_seconds
from bench.stack import Stack, percentile, wait_for
from bench.streams import Place, Stream, connect
from deploy.local.process import Supervised
from serving.local_port import free_port

STREAMS, TOKENS_PER_SECOND = 64, 50
LEAVING, LEAVING_RATE = 1000, 2
FIRST_TOKEN_GOAL_MS = 5
WARMING = 20  # requests that are not counted
LAG_GOAL_MS = 1000 / TOKENS_PER_SECOND  # a stream that keeps up is never a whole token behind
CHUNK_GOAL_MICROSECONDS = 150  # so that 64 streams take half of a core
STREAM_GOAL_KILOBYTES = 100
STARTING_SECONDS = 180  # for all of them to have a first token, on a busy machine
STOP_SECONDS = 5  # within which nobody works any more for who has left
# The first grow tables and pools that stay, and what waits for the garbage collector: the next must not.
SETTLING = 4
KEPT_GOAL_MEGABYTES = 4  # of memory that a thousand who left may have made the allocator keep
# A model as a finished fine-tune leaves it; the stand-in is the llama-server that it was published to.
PUBLISHED = """
    INSERT INTO models (id, project_id, name) VALUES ('model-faq', 'default', 'faq');
    INSERT INTO model_versions (id, model_id, number, details) VALUES ('version-faq', 'model-faq', 1, '{}');
    UPDATE models SET current_version_id = 'version-faq' WHERE id = 'model-faq';
    INSERT INTO model_files (version_id, position, quantization, backend, backend_name, bytes, sha256)
    VALUES ('version-faq', 0, 'Q4_K_M', 'llama_server', 'paced', 1, '');
"""

JSON = dict[str, Any]


@dataclass(frozen=True)
class Served:
    """The stand-in, and an API before it."""

    direct: Place
    through: Place
    api: psutil.Process
    tasks: Path  # where the API tells how many it has

    def places(self, dice: random.Random) -> list[tuple[str, Place]]:
        return dice.sample([("direct", self.direct), ("through", self.through)], 2)

    def running(self) -> JSON:
        answer = httpx.get(f"http://127.0.0.1:{self.direct.port}/running", trust_env=False)
        told: JSON = answer.json()
        return told

    def standing(self) -> JSON:
        """What the API holds: tasks of its event loop, connections, memory."""
        self.tasks.unlink(missing_ok=True)
        self.api.send_signal(signal.SIGUSR2)
        wait_until(self.tasks.exists, STOP_SECONDS)
        connections = [row for row in self.api.net_connections("tcp") if row.status == "ESTABLISHED"]
        ports = {self.direct.port: "to_backend", self.through.port: "from_clients"}
        held = dict.fromkeys(ports.values(), 0)
        for row in connections:
            port = row.raddr.port if row.raddr.port in ports else row.laddr.port
            if port in ports:
                held[ports[port]] += 1
        memory = self.api.memory_info().rss / 1e6
        return {"tasks": int(self.tasks.read_text()), **held, "megabytes": round(memory, 1)}


def wait_until(done: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def serve(stack: Stack) -> Served:
    backend, tasks = free_port(), stack.folder / "tasks"
    stack.python("paced", "bench.paced_server", {}, str(backend))
    wait_for(backend)
    more = {"LATHE_CHAT_SERVER_URL": f"http://127.0.0.1:{backend}", TASKS: str(tasks)}
    port, server, _ = stack.lathe("serving", prepare=PUBLISHED, more=more, module="bench.serving_api")
    return Served(Place(backend, "paced"), Place(port, "faq"), process_of(server), tasks)


def process_of(server: Supervised) -> psutil.Process:
    assert server.pid is not None
    return psutil.Process(server.pid)


# --- the first token


async def first_tokens(served: Served, number: int, dice: random.Random) -> dict[str, list[float]]:
    """Seconds to the first token, one request at a time, over a connection that stays open."""
    taken: dict[str, list[float]] = {"direct": [], "through": []}
    streams = {name: await connect(place) for name, place in served.places(dice)}
    for turn in range(number + WARMING):
        for name, place in served.places(dice):
            sent = await streams[name].ask(place.stream(tokens=2, rate=1000))
            if turn >= WARMING:  # connections are made by then, and what is looked up is known
                taken[name].append(streams[name].first_at - sent)
    return taken


def told_of_first_tokens(served: Served, *, rounds: int, number: int, dice: random.Random) -> JSON:
    began = cpu_seconds([served.api])
    runs = [uvloop.run(first_tokens(served, number, dice)) for _ in range(rounds)]
    spent = (cpu_seconds([served.api]) - began) / rounds / (number + WARMING)

    def milliseconds(name: str, share: float) -> float:
        return statistics.median(percentile(run[name], share) for run in runs) * 1000

    found: JSON = {"rounds": rounds, "requests": number, "api_cpu_ms_each": round(spent * 1000, 2)}
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        through, direct = milliseconds("through", share), milliseconds("direct", share)
        found |= {f"direct_{label}_ms": round(direct, 3), f"through_{label}_ms": round(through, 3)}
        found[f"added_{label}_ms"] = round(through - direct, 3)
    return found


# --- many streams


async def stream_at_once(place: Place, seconds: float, dice: random.Random) -> list[Stream]:
    """Have so many answers streamed at a time, which begin within one token's time."""

    async def one(delay: float) -> Stream:
        stream = await connect(place)
        await asyncio.sleep(delay)
        request = place.stream(tokens=int(seconds * TOKENS_PER_SECOND), rate=TOKENS_PER_SECOND)
        await stream.ask(request)
        stream.transport.close()
        return stream

    delays = [dice.random() for _ in range(STREAMS)]
    return await asyncio.gather(*(one(delay) for delay in delays))


def told_of_streams(served: Served, *, rounds: int, seconds: float, dice: random.Random) -> JSON:
    lags: dict[str, list[list[float]]] = {"direct": [], "through": []}
    ends: dict[str, list[float]] = {"direct": [], "through": []}
    spent, before = [], served.api.memory_info().rss
    for _ in range(rounds):
        for name, place in served.places(dice):
            began = cpu_seconds([served.api])
            streams = uvloop.run(stream_at_once(place, seconds, dice))
            chunks = sum(len(stream.lags) for stream in streams)
            if name == "through":
                spent.append((cpu_seconds([served.api]) - began) / chunks * 1e6)
            lags[name].append([lag for stream in streams for lag in stream.lags])
            ends[name].append(max(stream.lags[-1] for stream in streams))
    found: JSON = {"rounds": rounds, "streams": STREAMS, "tokens_per_second": TOKENS_PER_SECOND}
    for name, of_rounds in lags.items():
        for label, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
            lag = statistics.median(percentile(of_one, share) for of_one in of_rounds)
            found[f"{name}_lag_{label}_ms"] = round(lag * 1000, 2)
        found[f"{name}_last_token_lag_ms"] = round(statistics.median(ends[name]) * 1000, 2)
    grown = (served.api.memory_info().rss - before) / 1e6
    return found | {
        "cpu_microseconds_a_chunk": round(statistics.median(spent), 1),
        "megabytes": round(served.api.memory_info().rss / 1e6, 1),
        "megabytes_grown": round(grown, 1),
    }


# --- who hangs up


async def leave(served: Served, dice: random.Random) -> JSON:
    """Begin so many streams, and hang up amid them: some before their first token, by FIN and by RST."""
    place = served.through
    streams = [await connect(place) for _ in range(LEAVING)]
    request = place.stream(tokens=10_000, rate=LEAVING_RATE)
    leaves_early = [dice.random() < 0.1 for _ in streams]
    for stream, early in zip(streams, leaves_early, strict=True):
        stream.begin(request)
        if early:
            await asyncio.sleep(0.001)  # sent, and not answered yet
            stream.hang_up(reset=dice.random() < 0.5)
    staying = [stream for stream, early in zip(streams, leaves_early, strict=True) if not early]
    async with asyncio.timeout(STARTING_SECONDS):
        while not all(stream.lags or stream.error for stream in staying):
            await asyncio.sleep(0.05)
    assert not [stream.error for stream in staying if stream.error], next(s.error for s in staying if s.error)
    amid = await asyncio.to_thread(served.standing)
    told = await asyncio.to_thread(served.running)
    for stream in staying:
        stream.hang_up(reset=dice.random() < 0.5)
    return {"amid": amid, "running_amid": told["running"], "left_early": sum(leaves_early)}


def told_of_leaving(served: Served, dice: random.Random) -> JSON:
    idle = served.standing()
    settling = []
    for _ in range(SETTLING):
        settling.append(uvloop.run(leave(served, dice)))
        wait_until(lambda: not served.running()["running"], STOP_SECONDS)
        wait_until(lambda: served.standing()["tasks"] <= idle["tasks"], STOP_SECONDS)
    first, before = settling[0], served.standing()
    found = uvloop.run(leave(served, dice))
    began = time.monotonic()
    stopped = wait_until(lambda: not served.running()["running"], STOP_SECONDS)
    took = time.monotonic() - began

    wait_until(lambda: served.standing()["tasks"] <= idle["tasks"], STOP_SECONDS)
    after = served.standing()
    each = (first["amid"]["megabytes"] - idle["megabytes"]) / first["running_amid"] * 1000
    return {
        "clients": LEAVING, "idle": idle, "before": before, **found, "after": after,
        "still_running": served.running()["running"], "stopped": stopped,
        "seconds_to_stop": round(took, 2), "kilobytes_a_stream": round(each, 1),
    }  # fmt: skip


# --- all of it


def goals_of_first_tokens(found: JSON) -> list[tuple[str, float, str, bool]]:
    added = found["added_p99_ms"]
    return [
        ("added to the first token p99, ms", added, f"<= {FIRST_TOKEN_GOAL_MS}", added <= FIRST_TOKEN_GOAL_MS)
    ]


def goals_of_streams(found: JSON) -> list[tuple[str, float, str, bool]]:
    lag, last = found["through_lag_p99_ms"], found["through_last_token_lag_ms"]
    spent, goal = found["cpu_microseconds_a_chunk"], CHUNK_GOAL_MICROSECONDS
    return [
        (f"lag of a token of {STREAMS} streams p99, ms", lag, f"<= {LAG_GOAL_MS:g}", lag <= LAG_GOAL_MS),
        ("lag of the slowest stream's last token, ms", last, f"<= {LAG_GOAL_MS:g}", last <= LAG_GOAL_MS),
        ("CPU of the API a chunk, µs", spent, f"<= {goal}", spent <= goal),
    ]


def goals_of_leaving(found: JSON) -> list[tuple[str, float, str, bool]]:
    before, after, left = found["before"], found["after"], found["still_running"]
    tasks = after["tasks"] - found["idle"]["tasks"]
    clients = after["from_clients"]
    kept = after["megabytes"] - before["megabytes"]
    each = found["kilobytes_a_stream"]
    return [
        (f"requests still running {STOP_SECONDS} s after {LEAVING} clients left", left, "0", left == 0),
        ("tasks of the API more than before", tasks, "<= 0", tasks <= 0),
        ("connections of clients still open", clients, "0", clients == 0),
        ("memory kept after they left, MB", kept, f"<= {KEPT_GOAL_MEGABYTES}", kept <= KEPT_GOAL_MEGABYTES),
        ("memory of an open stream, kB", each, f"<= {STREAM_GOAL_KILOBYTES}", each <= STREAM_GOAL_KILOBYTES),
    ]


GOALS = {
    "first_token": goals_of_first_tokens,
    "streams": goals_of_streams,
    "leaving": goals_of_leaving,
    "batch": goals_of_batches,
}


def measure_all(stack: Stack, parts: list[str], *, quick: bool, seed: int) -> JSON:
    raise_file_limit()
    served, dice = serve(stack), random.Random(seed)  # noqa: S311
    rounds, number, seconds = (3, 300, 4) if quick else (5, 400, 20)
    works: dict[str, Callable[[], JSON]] = {
        "first_token": lambda: told_of_first_tokens(served, rounds=rounds, number=number, dice=dice),
        "streams": lambda: told_of_streams(served, rounds=rounds, seconds=seconds, dice=dice),
        "leaving": lambda: told_of_leaving(served, dice),
        "batch": lambda: told_of_batches(stack, PUBLISHED, rounds=rounds, rows=160 if quick else 640),
    }
    found: JSON = {"seed": seed, "load_average_before": os.getloadavg()[0], "idle": served.standing()}
    for name in parts:
        found[name] = works[name]()
    return found | {"load_average_after": os.getloadavg()[0]}


def bench(parts: list[str], *, quick: bool, seed: int) -> JSON:
    folder = Path(tempfile.mkdtemp(prefix="lathe-bench-"))
    try:
        with contextlib.ExitStack() as ending:
            found = measure_all(Stack(folder, ending), parts, quick=quick, seed=seed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    goals = [goal for name in parts for goal in GOALS[name](found[name])]
    return found | {
        "goals": [
            {"what": what, "result": round(result, 2), "goal": goal, "met": met}
            for what, result, goal, met in goals
        ]
    }


def show(result: Mapping[str, Any]) -> None:
    for name, row in result.items():
        if isinstance(row, dict):
            print(name.ljust(12), *(f"{field}={value}" for field, value in row.items()))
    show_goals(result["goals"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, for a look")
    parser.add_argument("--seed", type=int, default=1, help="of the order of runs, and of who leaves when")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--only", nargs="*", choices=GOALS, default=[*GOALS], help="some of its parts")
    options = parser.parse_args()
    result = bench(options.only, quick=options.quick, seed=options.seed)
    print(json.dumps(result)) if options.json else show(result)
    return 0 if all(goal["met"] for goal in result["goals"]) else 1


if __name__ == "__main__":
    sys.exit(main())
