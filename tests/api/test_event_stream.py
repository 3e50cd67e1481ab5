"""A job's events as server-sent events."""

import json
import threading
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from db.queries.jobs import add_event, end_job, get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobStatus
from tests.api.conftest import error_of

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
