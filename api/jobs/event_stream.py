"""A job's events as server-sent events: what was, what comes, and an end when the job has ended."""

import asyncio
import json
from collections.abc import AsyncIterator

from sqlalchemy import select

from api.jobs.schemas import EventOut
from api.jobs.views import event_number, event_out
from api.unit_of_work import Services, Unit
from db.models import Job
from db.queries.jobs import list_events
from db.states import ENDED_JOB

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 15
EVENTS_AT_ONCE = 500


async def stream_events(
    services: Services, job_id: str, after: int, type: str | None
) -> AsyncIterator[bytes]:
    """Yield a job's events after number `after`. No session is held between two looks."""
    silent_seconds = 0.0
    yield b"retry: 2000\n\n"
    while True:
        status, events, more = await services.run_in_transaction(
            lambda unit, seen=after: _look(unit, job_id, seen, type)  # type: ignore[misc]
        )
        for event in events:
            yield _frame(event.model_dump_json(), name=event.type, id=event.id)
            after = event_number(event.id)
        if more:
            continue
        if status in ENDED_JOB or status == "deleted":
            yield _frame(json.dumps({"id": job_id, "status": status}), name="end")
            return
        silent_seconds = 0.0 if events else silent_seconds + POLL_SECONDS
        if silent_seconds >= HEARTBEAT_SECONDS:
            silent_seconds = 0.0
            yield b": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)


def _look(unit: Unit, job_id: str, after: int, type: str | None) -> tuple[str, list[EventOut], bool]:
    # The status first: what a job says, it says before it ends. One that was deleted has ended.
    status = unit.session.scalar(select(Job.status).where(Job.id == job_id)) or "deleted"
    events, more = list_events(unit.session, job_id, type=type, after=after, limit=EVENTS_AT_ONCE)
    return status, [event_out(event) for event in events], more


def _frame(data: str, *, name: str, id: str | None = None) -> bytes:
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}event: {name}\ndata: {data}\n\n".encode()
