"""HTTP of jobs."""

from typing import Annotated, Literal

from fastapi import Header, Query, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from api.errors import CONFLICT
from api.files.sending import send_file
from api.idempotency import REUSED_KEY, repeatable
from api.jobs import service
from api.jobs.awaiting import awaitable
from api.jobs.cloning import clone_job
from api.jobs.event_stream import stream_events
from api.jobs.logs import log_page
from api.jobs.schemas import (
    ArtifactOut,
    CheckpointOut,
    CloneBody,
    CloneRequest,
    EstimateRequest,
    EventOut,
    JobDeleted,
    JobOut,
    JobRequest,
    JobWithAttempts,
    LogLine,
    MetricSeries,
    MetricsOut,
    RetryBody,
    RetryRequest,
)
from api.jobs.submission import estimate_of, submit
from api.jobs.views import (
    artifact_out,
    checkpoint_out,
    event_number,
    event_out,
    job_out,
    job_with_attempts,
    metrics_out,
    series_out,
)
from api.pages import After, Limit, Page, page
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from db.queries.checkpoints import exported_names, list_checkpoints
from db.queries.jobs import (
    cancel_job,
    get_artifact,
    get_job,
    list_artifacts,
    list_events,
    list_jobs,
    pause_job,
)
from db.queries.outlook import outlook
from db.queries.runtime import runtime_seconds
from db.queries.series import metric_series
from db.states import JobKind, JobStatus

router = make_router("jobs")

EVENT_STREAM = "text/event-stream"
EventType = Literal["message", "metrics"]


@router.post("/v1/jobs", status_code=202, response_model=JobOut, summary="Submit a job", responses=REUSED_KEY)
@repeatable
def submit_job(unit: Unit, body: JobRequest) -> JobOut:
    """Check a job and queue it. Whatever is wrong with it, nothing is queued."""
    return job_out(submit(unit, body))


@router.post(
    "/v1/jobs/estimate",
    status_code=202,
    response_model=JobOut,
    summary="Estimate a fine-tune, or quantising, before it starts",
    responses={**REUSED_KEY, 200: {"model": JobOut, "description": "The job has ended, with its result."}},
)
@awaitable
@repeatable
def estimate_job(unit: Unit, body: EstimateRequest) -> JobOut:
    """A job of the kind `estimate`, or `estimate_quantize`: what the job that the same body would submit
    takes of memory, disk and time, of a fine-tune also trainable weights, tokens and steps; how each was
    reckoned, and whether it fits.

    What cannot fit has `fits: false` and a `refusal` with what would make it fit; the job itself would fail
    with the same words before it trains, or quantises.
    """
    return job_out(submit(unit, estimate_of(body)))


@router.get("/v1/jobs", response_model=Page[JobOut], summary="List jobs, newest first")
@transactional
def list_all_jobs(
    unit: Unit,
    kind: JobKind | None = None,
    status: JobStatus | None = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[JobOut]:
    jobs, more = list_jobs(
        unit.session, project_id=unit.project_id, kind=kind, status=status, after=after, limit=limit
    )
    return page([job_out(job) for job in jobs], more)


@router.get("/v1/jobs/{job_id}", response_model=JobWithAttempts, summary="Look at a job")
@transactional
def get_one_job(unit: Unit, job_id: str) -> JobWithAttempts:
    """Its steps with every attempt, progress and time left, and in the end its result or its error."""
    job = get_job(unit.session, job_id, project_id=unit.project_id)
    foretold = outlook(unit.session, job, live_within_seconds=unit.settings.lease_seconds)
    return job_with_attempts(job, outlook=foretold, runtime_seconds=runtime_seconds(unit.session, job.id))


@router.delete(
    "/v1/jobs/{job_id}",
    response_model=JobDeleted,
    summary="Delete an ended job and its files",
    responses=CONFLICT,
)
@transactional
def delete_one_job(unit: Unit, job_id: str) -> JobDeleted:
    service.delete_job(unit, job_id)
    return JobDeleted(id=job_id)


@router.post("/v1/jobs/{job_id}/cancel", response_model=JobOut, summary="Cancel a job", responses=CONFLICT)
@transactional
def cancel_one_job(unit: Unit, job_id: str) -> JobOut:
    """A queued job never runs; of a running one, every process ends within seconds."""
    return job_out(cancel_job(unit.session, job_id, project_id=unit.project_id))


@router.post(
    "/v1/jobs/{job_id}/retry", response_model=JobOut, summary="Try a failed job again", responses=CONFLICT
)
@transactional
def retry_one_job(unit: Unit, job_id: str, body: RetryBody = None) -> JobOut:
    """A failed or cancelled job goes on from its first step that has not succeeded."""
    return job_out(service.retry_job(unit, job_id, body or RetryRequest()))


@router.post(
    "/v1/jobs/{job_id}/clone",
    status_code=202,
    response_model=JobOut,
    summary="Submit a job again, with changes",
    responses=REUSED_KEY,
)
@repeatable
def clone_one_job(unit: Unit, job_id: str, body: CloneBody = None) -> JobOut:
    """A new job with the same params but those given, checked as any other."""
    return job_out(clone_job(unit, job_id, body or CloneRequest()))


@router.post("/v1/jobs/{job_id}/pause", response_model=JobOut, summary="Pause a job", responses=CONFLICT)
@transactional
def pause_one_job(unit: Unit, job_id: str) -> JobOut:
    """Nothing more of it is started. A running step saves what it has; then the job is `paused`."""
    return job_out(pause_job(unit.session, job_id, project_id=unit.project_id))


@router.post(
    "/v1/jobs/{job_id}/resume", response_model=JobOut, summary="Resume a paused job", responses=CONFLICT
)
@transactional
def resume_one_job(unit: Unit, job_id: str) -> JobOut:
    """It goes on from its last checkpoint, on any worker. A job that is not paused stays as it is."""
    return job_out(service.resume(unit, job_id))


@router.get(
    "/v1/jobs/{job_id}/events",
    response_model=Page[EventOut],
    summary="What a job says",
    responses={200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}}},
)
async def list_job_events(
    request: Request,
    *,
    job_id: str,
    after: After = None,
    limit: Limit = 100,
    type: Annotated[EventType | None, Query(description="Only events of this type.")] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Page[EventOut] | Response:
    """Oldest first, in pages; with `Accept: text/event-stream` as a stream that ends with the job.

    A stream goes on after `Last-Event-ID`, and its last event is `end`.
    """
    services = services_of(request)
    streamed = EVENT_STREAM in request.headers.get("accept", "")
    seen = last_event_id if streamed and last_event_id else after
    number = event_number(seen, param="Last-Event-ID" if seen is last_event_id and seen else "after")

    def first_page(unit: Unit) -> Page[EventOut] | None:
        get_job(unit.session, job_id, project_id=unit.project_id)
        if streamed:
            return None
        events, more = list_events(unit.session, job_id, type=type, after=number, limit=limit)
        return page([event_out(event) for event in events], more)

    answer = await services.run_in_transaction(first_page)
    if answer is not None:
        return answer
    return StreamingResponse(
        stream_events(services.feeds, job_id, number, type),
        media_type=EVENT_STREAM,
        headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
    )


@router.get("/v1/jobs/{job_id}/metrics", response_model=Page[MetricsOut], summary="What a job measured")
@transactional
def list_job_metrics(unit: Unit, job_id: str, after: After = None, limit: Limit = 100) -> Page[MetricsOut]:
    """Step, loss, learning rate, tokens/s and so on as they were measured, oldest first."""
    get_job(unit.session, job_id, project_id=unit.project_id)
    events, more = list_events(unit.session, job_id, type="metrics", after=event_number(after), limit=limit)
    return page([metrics_out(event) for event in events], more)


@router.get("/v1/jobs/{job_id}/metrics/series", summary="What a job measured, to be drawn")
@transactional
def get_job_metric_series(
    unit: Unit,
    job_id: str,
    points: Annotated[int, Query(ge=10, le=10_000, description="Points of one series, at most.")] = 500,
) -> MetricSeries:
    """Each value as a curve over the training's steps; a longer one keeps its lows and highs.

    An attempt that goes on from a checkpoint measures some steps again: those of earlier attempts are
    left out from its first step on.
    """
    get_job(unit.session, job_id, project_id=unit.project_id)
    series, superseded = metric_series(unit.session, job_id, points=points)
    return MetricSeries(
        job_id=job_id, points=points, superseded=superseded, data=[series_out(each) for each in series]
    )


@router.get("/v1/jobs/{job_id}/logs", response_model=Page[LogLine], summary="What a job's processes printed")
@transactional
def list_job_logs(
    unit: Unit,
    *,
    job_id: str,
    step: str | None = None,
    attempt: Annotated[int | None, Query(ge=1)] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[LogLine]:
    job = get_job(unit.session, job_id, project_id=unit.project_id)
    lines, more = log_page(unit, job, step=step, attempt=attempt, after=after, limit=limit)
    return page(lines, more)


@router.get(
    "/v1/jobs/{job_id}/checkpoints",
    response_model=Page[CheckpointOut],
    summary="What a training can go on from",
)
@transactional
def list_job_checkpoints(
    unit: Unit, job_id: str, after: After = None, limit: Limit = 20
) -> Page[CheckpointOut]:
    """Newest first. Any of them can be exported (`kind: export`), also while the training runs."""
    get_job(unit.session, job_id, project_id=unit.project_id)
    rows, more = list_checkpoints(unit.session, job_id, after=after, limit=limit)
    names = exported_names(unit.session, [row.id for row in rows], project_id=unit.project_id)
    return page([checkpoint_out(row, names.get(row.id)) for row in rows], more)


@router.get("/v1/jobs/{job_id}/artifacts", response_model=Page[ArtifactOut], summary="What a job made")
@transactional
def list_job_artifacts(unit: Unit, job_id: str) -> Page[ArtifactOut]:
    get_job(unit.session, job_id, project_id=unit.project_id)
    return page([artifact_out(row) for row in list_artifacts(unit.session, job_id)], False)


@router.get(
    "/v1/jobs/{job_id}/artifacts/{name}",
    summary="The bytes of an artifact",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file; takes Range."}},
)
@transactional
def get_job_artifact(unit: Unit, request: Request, job_id: str, name: str) -> Response:
    get_job(unit.session, job_id, project_id=unit.project_id)
    artifact = get_artifact(unit.session, job_id, name)
    return send_file(
        unit.settings.storage_root, artifact.path, name=artifact.name, sha256=artifact.sha256, request=request
    )
