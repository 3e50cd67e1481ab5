"""Which events webhooks tell of, and what is sent for one. The shapes are OpenAI's."""

import json
from enum import StrEnum

from db.states import JobKind, JobStatus


class EventType(StrEnum):
    """`job.*` tells of jobs of every kind; `fine_tuning.job.*` and `batch.*` are OpenAI's own names."""

    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    FINE_TUNE_SUCCEEDED = "fine_tuning.job.succeeded"
    FINE_TUNE_FAILED = "fine_tuning.job.failed"
    FINE_TUNE_CANCELLED = "fine_tuning.job.cancelled"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"


class DeliveryStatus(StrEnum):
    PENDING = "pending"  # to be tried, for the first time or again
    SUCCEEDED = "succeeded"  # the receiver answered 2xx
    FAILED = "failed"  # given up; may be sent again by hand


def job_event(status: JobStatus) -> EventType:
    """What the end of any job is called."""
    return EventType(f"job.{status}")


def events_of(kind: JobKind, status: JobStatus, *, expired: bool = False) -> list[EventType]:
    """Every event that the end of a job of that kind is; `expired`: its time was over before all was done."""
    events = [job_event(status)]
    if kind == JobKind.BATCH and status == JobStatus.SUCCEEDED:
        events.append(EventType.BATCH_EXPIRED if expired else EventType.BATCH_COMPLETED)
    elif kind == JobKind.BATCH:
        events.append(EventType(f"batch.{status}"))
    if kind == JobKind.FINE_TUNE:
        events.append(EventType(f"fine_tuning.job.{status}"))
    return events


def event_body(event_id: str, event_type: EventType, *, created_at: int, subject_id: str) -> str:
    """The JSON text of an event. It is kept as it is, since its signature is over its bytes."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": created_at,
        "type": str(event_type),
        "data": {"id": subject_id},
    }
    return json.dumps(event, separators=(",", ":"))
