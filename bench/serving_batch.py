"""A batch of requests against the best that the model's server can do, for `bench.serving`.

The stand-in answers so many at once, each after a fixed time. Its best is what clients get from it that never
let a place of it be free: raw connections, as many as it has places.
"""

import asyncio
import json
import statistics
import time
from typing import Any

import httpx
import uvloop

from bench.stack import Stack, wait_for
from bench.streams import Place, connect
from serving.local_port import free_port

SLOTS, ANSWER_SECONDS = 8, 0.25
GOAL = 0.95
JOB_SECONDS = 300

JSON = dict[str, Any]


async def fully(place: Place, rows: int) -> None:
    """Keep every place of the server taken until so many rows are answered."""
    left = list(range(rows))

    async def one() -> None:
        stream = await connect(place)
        while left:
            await stream.ask_whole(place.request(f"row {left.pop()}", answer_seconds=ANSWER_SECONDS))
        stream.transport.close()

    await asyncio.gather(*(one() for _ in range(SLOTS)))


def batch(client: httpx.Client, model: str, rows: int) -> JSON:
    """Send the same rows as a batch, and wait for its end."""
    body = {"model": model, "answer_seconds": ANSWER_SECONDS}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions",
         "body": {**body, "messages": [{"role": "user", "content": f"row {number}"}]}}
        for number in range(rows)
    ]  # fmt: skip
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    sent = client.post("/v1/files", files={"file": ("rows.jsonl", content)}, data={"purpose": "batch"})
    asked = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = client.post("/v1/batches", json={**asked, "input_file_id": sent.raise_for_status().json()["id"]})
    path = f"/v1/batches/{made.raise_for_status().json()['id']}"
    deadline = time.monotonic() + JOB_SECONDS
    while (found := client.get(path).json())["status"] not in ("completed", "failed", "expired"):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found["request_counts"] == {"total": rows, "completed": rows, "failed": 0}, found
    told: JSON = found
    return told


def told_of_batches(stack: Stack, prepare: str, *, rounds: int, rows: int) -> JSON:
    backend = free_port()
    stack.python("slots", "bench.paced_server", {}, str(backend), "--slots", str(SLOTS))
    wait_for(backend)
    limits = stack.folder / "limits.toml"
    limits.write_text(f"[llama_server]\nconcurrency = {SLOTS}\n")
    url = f"http://127.0.0.1:{backend}"
    more = {"LATHE_CHAT_SERVER_URL": url, "LATHE_BACKENDS": str(limits)}
    port, _, environment = stack.lathe("batches", prepare=prepare, more=more)
    stack.python("worker", "worker", environment)
    place = Place(backend, "paced")
    rates: dict[str, list[float]] = {"direct": [], "batch": []}
    took = []
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:

        def rate() -> float:
            return rows / float(httpx.get(f"{url}/running", trust_env=False).json()["seconds"])

        for _ in range(rounds):
            uvloop.run(fully(place, rows))
            rates["direct"].append(rate())
            done = batch(client, "faq", rows)
            rates["batch"].append(rate())
            took.append(done["completed_at"] - done["created_at"])
    direct, batched = (statistics.median(rates[name]) for name in ("direct", "batch"))
    return {
        "rounds": rounds, "rows": rows, "slots": SLOTS, "answer_seconds": ANSWER_SECONDS,
        "possible_rows_per_second": SLOTS / ANSWER_SECONDS, "direct_rows_per_second": round(direct, 2),
        "batch_rows_per_second": round(batched, 2), "of_direct": round(batched / direct, 4),
        "whole_job_seconds": statistics.median(took),
    }  # fmt: skip


def goals_of_batches(found: JSON) -> list[tuple[str, float, str, bool]]:
    share = found["of_direct"]
    return [("rows a second of a batch, of the server's best", share, f">= {GOAL}", share >= GOAL)]
