"""HTTP of fine-tuning jobs, in OpenAI's shape: `client.fine_tuning.jobs`."""

import re
from typing import Any

from fastapi import Request

from api.errors import CONFLICT
from api.fine_tuning import service
from api.fine_tuning.schemas import (
    FineTuningCheckpointOut,
    FineTuningEventOut,
    FineTuningJobOut,
    FineTuningRequest,
)
from api.fine_tuning.views import fine_tuning_checkpoint_out, fine_tuning_event_out, fine_tuning_job_out
from api.idempotency import REUSED_KEY, repeatable
from api.jobs.service import resume
from api.jobs.views import event_number
from api.pages import After, Limit, Page, page
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from db.errors import InvalidInput
from db.models import Job
from db.queries.checkpoints import list_checkpoints
from db.queries.jobs import cancel_job, list_events, list_jobs, pause_job
from db.queries.outlook import outlook
from db.states import JobKind

router = make_router("fine-tuning")

METADATA_FIELD = re.compile(r"metadata\[(.+)\]", re.DOTALL)
METADATA_QUERY: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "description": "Only jobs that have all of these: `metadata[team]=search`. "
            "`metadata=null`: those that have none.",
            "style": "deepObject",
            "explode": True,
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


@router.post(
    "/v1/fine_tuning/jobs",
    response_model=FineTuningJobOut,
    summary="Submit a fine-tune in OpenAI's shape",
    responses=REUSED_KEY,
)
@repeatable
def create_fine_tuning_job(unit: Unit, body: FineTuningRequest) -> FineTuningJobOut:
    """It is a job of kind `fine_tune`, under the same id in `/v1/jobs`."""
    return _out(unit, service.create(unit, body))


@router.get(
    "/v1/fine_tuning/jobs",
    response_model=Page[FineTuningJobOut],
    summary="List fine-tunes, newest first",
    openapi_extra=METADATA_QUERY,
)
@transactional
def list_fine_tuning_jobs(
    unit: Unit, request: Request, after: After = None, limit: Limit = 20
) -> Page[FineTuningJobOut]:
    without = request.query_params.get("metadata")
    if without not in (None, "null"):
        raise InvalidInput("metadata is null, or given by its keys: metadata[team]=search.", param="metadata")
    matches = {name: METADATA_FIELD.fullmatch(name) for name in request.query_params}
    notes = {match[1]: request.query_params[name] for name, match in matches.items() if match is not None}
    jobs, more = list_jobs(
        unit.session,
        project_id=unit.project_id,
        kind=JobKind.FINE_TUNE,
        notes=notes,
        without_notes=without is not None,
        after=after,
        limit=limit,
    )
    return page([_out(unit, job) for job in jobs], more)


@router.get(
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}",
    response_model=FineTuningJobOut,
    summary="Look at a fine-tune",
)
@transactional
def get_fine_tuning_job(unit: Unit, fine_tuning_job_id: str) -> FineTuningJobOut:
    job = service.find(unit, fine_tuning_job_id)
    foretold = outlook(unit.session, job, live_within_seconds=unit.settings.lease_seconds)
    return fine_tuning_job_out(job, service.integrations_of(unit.settings), foretold)


@router.post(
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/cancel",
    response_model=FineTuningJobOut,
    summary="Cancel a fine-tune",
    responses=CONFLICT,
)
@transactional
def cancel_fine_tuning_job(unit: Unit, fine_tuning_job_id: str) -> FineTuningJobOut:
    service.find(unit, fine_tuning_job_id)
    return _out(unit, cancel_job(unit.session, fine_tuning_job_id, project_id=unit.project_id))


@router.post(
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/pause",
    response_model=FineTuningJobOut,
    summary="Pause a fine-tune",
    responses=CONFLICT,
)
@transactional
def pause_fine_tuning_job(unit: Unit, fine_tuning_job_id: str) -> FineTuningJobOut:
    """`paused` once nothing of it runs: a training saves what it has first."""
    service.find(unit, fine_tuning_job_id)
    return _out(unit, pause_job(unit.session, fine_tuning_job_id, project_id=unit.project_id))


@router.post(
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/resume",
    response_model=FineTuningJobOut,
    summary="Resume a paused fine-tune",
    responses=CONFLICT,
)
@transactional
def resume_fine_tuning_job(unit: Unit, fine_tuning_job_id: str) -> FineTuningJobOut:
    service.find(unit, fine_tuning_job_id)
    return _out(unit, resume(unit, fine_tuning_job_id))


@router.get(
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/events",
    response_model=Page[FineTuningEventOut],
    summary="What a fine-tune says, newest first",
)
@transactional
def list_fine_tuning_events(
    unit: Unit, fine_tuning_job_id: str, after: After = None, limit: Limit = 20
) -> Page[FineTuningEventOut]:
    service.find(unit, fine_tuning_job_id)
    events, more = list_events(
        unit.session, fine_tuning_job_id, after=event_number(after), limit=limit, newest_first=True
    )
    return page([fine_tuning_event_out(event) for event in events], more)


@router.get(
    "/v1/fine_tuning/jobs/{fine_tuning_job_id}/checkpoints",
    response_model=Page[FineTuningCheckpointOut],
    summary="The checkpoints of a fine-tune, newest first",
)
@transactional
def list_fine_tuning_checkpoints(
    unit: Unit, fine_tuning_job_id: str, after: After = None, limit: Limit = 10
) -> Page[FineTuningCheckpointOut]:
    """Each answers chat by its name: the first question to it has it exported."""
    job = service.find(unit, fine_tuning_job_id)
    rows, more = list_checkpoints(unit.session, job.id, after=after, limit=limit)
    return page([fine_tuning_checkpoint_out(job, row) for row in rows], more)


def _out(unit: Unit, job: Job) -> FineTuningJobOut:
    return fine_tuning_job_out(job, service.integrations_of(unit.settings))
