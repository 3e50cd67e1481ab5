"""A job's events as server-sent events."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import event, text

from api.jobs import event_stream, feeds
from api.jobs.feeds import Feed
from db.queries.jobs import add_event, end_job, get_job
from db.session import SessionFactory, transaction
from db.settings import Settings, child_environment
from db.states import JobStatus
from serving.local_port import free_port
from tests.api.conftest import error_of
from tests.waiting import wait_until

STREAM = {"accept": "text/event-stream"}


@pytest.fixture
def job_id(api: httpx.Client) -> str:
    answer = api.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "p"}})
    job_id: str = answer.json()["id"]
    return job_id


def say(factory: SessionFactory, job_id: str, *messages: str) -> None:
    with transaction(factory) as session:
        for message in messages:
            add_event(session, job_id, message)


def end(factory: SessionFactory, job_id: str) -> None:
    with transaction(factory) as session:
        end_job(session, get_job(session, job_id, project_id="default", lock=True), JobStatus.CANCELLED)


def frames(text_of_stream: str) -> list[dict[str, Any]]:
    found = []
    for block in text_of_stream.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        if "data" in lines:
            found.append(lines | {"data": json.loads(lines["data"])})
    return found


def test_tells_what_was_and_what_comes_and_ends_with_the_job(
    api: httpx.Client, session_factory: SessionFactory, job_id: str
) -> None:
    say(session_factory, job_id, "before")
    threading.Timer(0.3, say, (session_factory, job_id, "amid")).start()
    threading.Timer(0.9, end, (session_factory, job_id)).start()
    answer = api.get(f"/v1/jobs/{job_id}/events", headers=STREAM)
    assert answer.headers["content-type"].startswith("text/event-stream")
    seen = frames(answer.text)
    assert [frame["data"].get("message") for frame in seen] == [
        "before",
        "amid",
        "The job is cancelled.",
        None,
    ]
    assert [frame["event"] for frame in seen] == ["message"] * 3 + ["end"]
    assert seen[0]["id"] == seen[0]["data"]["id"]
    assert seen[-1]["data"] == {"id": job_id, "status": "cancelled"}


def test_goes_on_after_the_last_event_that_was_seen(
    api: httpx.Client, session_factory: SessionFactory, job_id: str
) -> None:
    say(session_factory, job_id, "one", "two", "three")
    end(session_factory, job_id)
    events = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    headers = STREAM | {"last-event-id": events[1]["id"]}
    seen = frames(api.get(f"/v1/jobs/{job_id}/events", headers=headers).text)
    assert [frame["data"].get("message") for frame in seen] == ["three", "The job is cancelled.", None]


@pytest.mark.parametrize("seen", ["event-x", "event-", "-1", "9" * 5000])
def test_what_is_no_events_id_is_400(api: httpx.Client, job_id: str, seen: str) -> None:
    answer = api.get(f"/v1/jobs/{job_id}/events", headers=STREAM | {"last-event-id": seen})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "Last-Event-ID"


def test_a_stream_of_an_unknown_job_is_404(api: httpx.Client) -> None:
    assert api.get("/v1/jobs/job-nope/events", headers=STREAM).status_code == 404


def test_no_transaction_is_open_while_it_waits(
    api: httpx.Client, session_factory: SessionFactory, settings: Settings, job_id: str
) -> None:
    say(session_factory, job_id, "one")
    with api.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        while "one" not in next(lines):
            pass
        with transaction(session_factory) as session:
            waiting = text(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND state LIKE 'idle in transaction%' "
                "AND state_change < clock_timestamp() - interval '0.2 s'"
            )
            assert session.scalar(waiting) == 0


ListOfFrames = list[dict[str, Any]]


@contextmanager
def watching(api: httpx.Client, job_id: str, *, watchers: int = 1) -> Iterator[list[ListOfFrames]]:
    """Watch a job from several threads; after the block, what each was told until the end of its stream."""
    told: list[ListOfFrames] = [[] for _ in range(watchers)]

    def watch(number: int) -> None:
        block = ""
        with api.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
            for line in answer.iter_lines():
                block += f"{line}\n"
                if not line:
                    told[number] += frames(block) if "data: " in block else []
                    block = ""

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(watchers)]
    for thread in threads:
        thread.start()
    yield told
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def messages(told: ListOfFrames) -> list[str | None]:
    return [frame["data"].get("message") for frame in told]


LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


def listeners(session_factory: SessionFactory) -> int:
    with transaction(session_factory) as session:
        return int(session.scalar(text(f"SELECT count(*) {LISTENERS}")) or 0)


def test_many_watchers_are_told_by_one_listener_and_of_everything_once(
    api: httpx.Client, session_factory: SessionFactory, job_id: str
) -> None:
    say(session_factory, job_id, "before")
    before = listeners(session_factory)  # those of other APIs on this database among them
    with watching(api, job_id, watchers=8) as told:
        for number in range(40):
            say(session_factory, job_id, f"{number}")
        wait_until(lambda: all(len(seen) >= 41 for seen in told))
        assert listeners(session_factory) == before >= 1
        end(session_factory, job_id)
    expected = ["before", *map(str, range(40)), "The job is cancelled.", None]
    assert [messages(seen) for seen in told] == [expected] * 8


def test_a_stream_that_is_far_behind_gets_everything_in_order(
    api: httpx.Client, session_factory: SessionFactory, job_id: str
) -> None:
    many = [str(number) for number in range(2 * feeds.REMEMBERED + 7)]
    say(session_factory, job_id, *many)
    with watching(api, job_id, watchers=2) as told:
        wait_until(lambda: bool(told[0]) and bool(told[1]))
        say(session_factory, job_id, *many)
        end(session_factory, job_id)
    for seen in told:
        assert messages(seen) == [*many, *many, "The job is cancelled.", None]


def test_goes_on_when_every_connection_to_the_database_was_cut(
    api: httpx.Client, session_factory: SessionFactory, job_id: str
) -> None:
    with watching(api, job_id, watchers=3) as told:
        say(session_factory, job_id, "before")
        wait_until(lambda: all(told))
        with transaction(session_factory) as session:
            session.execute(text(f"SELECT pg_terminate_backend(pid) {LISTENERS}"))
            cut = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            session.execute(text(f"SELECT pg_terminate_backend(pid, 10000) {cut}"))  # once they are gone
        say(session_factory, job_id, "while nobody listens")
        wait_until(lambda: all(len(seen) == 2 for seen in told))
        say(session_factory, job_id, "after")
        end(session_factory, job_id)
    expected = ["before", "while nobody listens", "after", "The job is cancelled.", None]
    assert [messages(seen) for seen in told] == [expected] * 3


def test_looks_now_and_then_should_a_notification_be_lost(
    api: httpx.Client, session_factory: SessionFactory, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "LOOK_ANYWAY_SECONDS", 0.2)
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.1)
    with watching(api, job_id) as told:
        say(session_factory, job_id, "heard")
        wait_until(lambda: len(told[0]) == 1)
        with session_factory.begin() as session:  # which tells nobody, as a process that died in time
            add_event(session, job_id, "not heard")
        wait_until(lambda: len(told[0]) == 2)
        end(session_factory, job_id)
    assert messages(told[0])[:2] == ["heard", "not heard"]


def test_says_that_it_is_still_there(
    api: httpx.Client, session_factory: SessionFactory, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.1)
    # What the stream leaves out is no sign of life.
    query = {"type": "metrics"}
    with api.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM, params=query) as answer:
        lines = answer.iter_lines()
        for _ in range(2):
            say(session_factory, job_id, "left out")
            while next(lines) != ": still here":
                pass


def test_a_wave_of_watchers_reads_the_database_once(session_factory: SessionFactory, job_id: str) -> None:
    reads: list[object] = []
    event.listen(session_factory, "after_begin", lambda *began: reads.append(began))
    say(session_factory, job_id, "one", "two")

    async def wave() -> list[int]:
        feed = Feed(job_id, session_factory)
        first = await asyncio.gather(*(feed.after(0) for _ in range(100)))
        feed.wake()
        again = await asyncio.gather(*(feed.after(first[0].seen) for _ in range(100)))
        return [len(news.frames) for news in (*first, *again)]

    reads.clear()
    assert asyncio.run(wave()) == [2] * 100 + [0] * 100
    assert len(reads) == 2


def test_streams_end_whole_when_the_api_stops(
    session_factory: SessionFactory, settings: Settings, job_id: str
) -> None:
    port = free_port()
    own = {"LATHE_API_PORT": str(port), "LATHE_DATA_DIR": str(settings.data_dir)}
    own |= {"DATABASE_URL": settings.require_database_url(), "REDIS_URL": settings.require_redis_url()}
    process = subprocess.Popen([sys.executable, "-m", "api"], env=child_environment(own))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as client:
            wait_until(lambda: _answers(client), seconds=30)
            say(session_factory, job_id, "one")
            with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
                lines = answer.iter_lines()
                while "one" not in next(lines):
                    pass
                process.send_signal(signal.SIGTERM)
                # A stream that is cut off, as uvicorn does to those that stay, raises here.
                assert not any(line.startswith("event: end") for line in lines)
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False
