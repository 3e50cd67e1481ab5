"""A job of kind `batch` as OpenAI's batch."""

from datetime import datetime, timedelta
from typing import Any

from api.batches.schemas import BatchError, BatchErrors, BatchOut, BatchUsage, RequestCounts, Status
from api.pages import unix_seconds, unix_seconds_or_none
from db.models import Job, Step
from db.states import JobStatus, StepStatus

OUTPUT, ERRORS = "output.jsonl", "errors.jsonl"


def batch_out(job: Job) -> BatchOut:
    steps = {step.name: step for step in job.steps}
    status = _status(job, steps)
    result = job.result or {}
    files = result.get("files", {})
    seconds = job.params["finish_within_seconds"]
    expires_at = job.created_at + timedelta(seconds=seconds) if seconds is not None else None

    def ended_as(wanted: Status) -> int | None:
        return unix_seconds_or_none(job.finished_at) if status == wanted else None

    return BatchOut(
        id=job.id,
        endpoint=job.params["endpoint"],
        model=(steps["read"].result or {}).get("model"),
        errors=_errors(job),
        input_file_id=job.params["input_file"],
        status=status,
        output_file_id=files.get(OUTPUT),
        error_file_id=files.get(ERRORS),
        created_at=unix_seconds(job.created_at),
        in_progress_at=unix_seconds_or_none(steps["ask"].started_at),
        expires_at=unix_seconds_or_none(expires_at),
        finalizing_at=unix_seconds_or_none(_succeeded_at(steps["ask"])),
        completed_at=ended_as("completed"),
        failed_at=ended_as("failed"),
        expired_at=ended_as("expired"),
        # When it was asked for is not kept; a batch is cancelled within seconds.
        cancelling_at=ended_as("cancelled"),
        cancelled_at=ended_as("cancelled"),
        request_counts=_counts(result, steps),
        usage=_usage(result),
        metadata=job.notes,
    )


def _status(job: Job, steps: dict[str, Step]) -> Status:
    ended: dict[str, Status] = {
        JobStatus.CANCELLING: "cancelling",
        JobStatus.CANCELLED: "cancelled",
        JobStatus.FAILED: "failed",
        JobStatus.SUCCEEDED: "expired" if (job.result or {}).get("expired") else "completed",
    }
    if job.status in ended:
        return ended[job.status]
    if steps["ask"].status == StepStatus.SUCCEEDED:
        return "finalizing"
    return "in_progress" if steps["read"].status == StepStatus.SUCCEEDED else "validating"


def _succeeded_at(step: Step) -> datetime | None:
    return step.finished_at if step.status == StepStatus.SUCCEEDED else None


def _errors(job: Job) -> BatchErrors | None:
    if not job.error:
        return None
    problems: list[dict[str, Any]] = job.error.get("problems") or [job.error]
    return BatchErrors(
        data=[
            BatchError(code=row["code"], line=row.get("line"), message=row["message"], param=row.get("param"))
            for row in problems
        ]
    )


def _counts(result: dict[str, Any], steps: dict[str, Step]) -> RequestCounts:
    if result:
        failed = result["failed"] + result["unasked"]
        return RequestCounts(total=result["rows"], completed=result["answered"], failed=failed)
    asked = steps["ask"].progress or {}
    failed = asked.get("failed") or 0
    total = (steps["read"].result or {}).get("rows", 0)
    return RequestCounts(total=total, completed=asked.get("done", 0) - failed, failed=failed)


def _usage(result: dict[str, Any]) -> BatchUsage | None:
    tokens = result.get("tokens")
    if tokens is None:
        return None
    asked, answered = tokens["prompt"], tokens["completion"]
    return BatchUsage(input_tokens=asked, output_tokens=answered, total_tokens=asked + answered)
