"""Rows as the bodies that show them."""

import re
from typing import Any

from api.devices.schemas import DeviceName
from api.jobs.schemas import (
    ArtifactOut,
    AttemptOut,
    CheckpointOut,
    EventOut,
    JobError,
    JobOut,
    JobWithAttempts,
    MetricsOut,
    Progress,
    SeriesOut,
    StepOut,
    StepWithAttempts,
)
from api.pages import unix_seconds, unix_seconds_or_none
from db.errors import InvalidInput
from db.kinds import PARAMS
from db.models import Artifact, Attempt, Checkpoint, Device, Event, Job, Step
from db.queries.outlook import Outlook
from db.queries.runtime import seconds_left
from db.queries.series import Series
from db.states import StepStatus

EVENT_PREFIX = "event-"
EVENT_NUMBER = re.compile(r"[0-9]{1,18}")


def job_out(job: Job) -> JobOut:
    return JobOut.model_construct(**_job_fields(job), steps=[_step_out(step) for step in job.steps])


def job_with_attempts(job: Job, *, outlook: Outlook, runtime_seconds: float) -> JobWithAttempts:
    steps = [
        StepWithAttempts(
            **_step_out(step).model_dump(), attempts=[_attempt_out(attempt) for attempt in step.attempts]
        )
        for step in job.steps
    ]
    return JobWithAttempts.model_construct(
        **_job_fields(job),
        steps=steps,
        queue_position=outlook.queue_position,
        estimated_start_at=unix_seconds_or_none(outlook.starts_at),
        estimated_finish_at=unix_seconds_or_none(outlook.finishes_at),
        runtime_seconds=round(runtime_seconds, 1),
    )


def _job_fields(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "status": job.status,
        "params": _params_of(job),
        "priority": job.priority,
        "max_attempts": job.max_attempts,
        "max_runtime_seconds": job.max_runtime_seconds,
        "metadata": job.notes,
        "webhook_url": job.webhook_url,
        "waits_for": job.waits_for_job_id,
        "cloned_from": job.cloned_from,
        "created_at": unix_seconds(job.created_at),
        "started_at": unix_seconds_or_none(job.started_at),
        "finished_at": unix_seconds_or_none(job.finished_at),
        "progress": _progress_of(job),
        "result": job.result,
        "error": _error_of(job),
    }


def _params_of(job: Job) -> dict[str, Any]:
    """The params in the order of their model: Postgres keeps them by the length of their names."""
    ordered = {name: job.params[name] for name in PARAMS[job.kind].model_fields if name in job.params}
    return ordered | job.params


def _error_of(row: Job | Attempt) -> JobError | None:
    return JobError.model_validate(row.error) if row.error else None


def _step_out(step: Step) -> StepOut:
    return StepOut.model_construct(
        name=step.name,
        queue=step.queue,
        status=step.status,
        attempt=step.attempt,
        started_at=unix_seconds_or_none(step.started_at),
        finished_at=unix_seconds_or_none(step.finished_at),
    )


def _attempt_out(attempt: Attempt) -> AttemptOut:
    return AttemptOut(
        number=attempt.number,
        worker=attempt.worker,
        host=attempt.host,
        devices=[_device_name(device) for device in attempt.devices],
        started_at=unix_seconds(attempt.started_at),
        ended_at=unix_seconds_or_none(attempt.ended_at),
        outcome=attempt.outcome,
        exit_code=attempt.exit_code,
        signal=attempt.signal,
        resumed_from=attempt.resumed_from,
        error=_error_of(attempt),
    )


def _device_name(device: Device) -> DeviceName:
    return DeviceName(id=device.id, host=device.host, index=device.index, name=device.name)


def _progress_of(job: Job) -> Progress | None:
    step = next((step for step in job.steps if step.status == StepStatus.RUNNING), None)
    if step is None or not step.progress:
        return None
    return Progress(
        step=step.name,
        done=int(step.progress.get("done", 0)),
        total=step.progress.get("total"),
        unit=step.progress.get("unit"),
        failed=step.progress.get("failed"),
        eta_seconds=seconds_left(step),
    )


def event_id(number: int) -> str:
    """Sortable, like every id: the number is padded."""
    return f"{EVENT_PREFIX}{number:016d}"


def event_number(name: str | None, *, param: str = "after") -> int:
    """The number in an event's id; 0, the beginning, for none.

    Raises:
        InvalidInput: it is no event's id.
    """
    if name is None:
        return 0
    digits = name.removeprefix(EVENT_PREFIX)
    if not EVENT_NUMBER.fullmatch(digits):
        raise InvalidInput(f"{param} must be the id of an event, such as {event_id(42)}.", param=param)
    return int(digits)


def event_out(event: Event) -> EventOut:
    return EventOut(
        id=event_id(event.id),
        created_at=unix_seconds(event.created_at),
        type=event.type,
        level=event.level,
        step=event.step,
        attempt=event.attempt,
        message=event.message,
        data=event.data,
    )


def metrics_out(event: Event) -> MetricsOut:
    return MetricsOut(
        id=event_id(event.id),
        created_at=unix_seconds(event.created_at),
        step=event.step,
        attempt=event.attempt,
        data=event.data or {},
    )


def checkpoint_out(checkpoint: Checkpoint, exported_as: str | None) -> CheckpointOut:
    return CheckpointOut(
        id=checkpoint.id,
        job_id=checkpoint.job_id,
        step=checkpoint.path.split("/")[2],
        attempt=checkpoint.attempt,
        step_number=checkpoint.step_number,
        metrics=checkpoint.metrics,
        bytes=checkpoint.bytes,
        exported_as=exported_as,
        created_at=unix_seconds(checkpoint.created_at),
    )


def series_out(series: Series) -> SeriesOut:
    return SeriesOut.model_construct(**vars(series))


def artifact_out(artifact: Artifact) -> ArtifactOut:
    return ArtifactOut(
        id=artifact.name,
        name=artifact.name,
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        step=artifact.step,
        created_at=unix_seconds(artifact.created_at),
    )
