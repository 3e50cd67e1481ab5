"""HTTP of batches, in OpenAI's shape: `client.batches`."""

from api.batches import service
from api.batches.schemas import BatchOut, BatchRequest
from api.batches.views import batch_out
from api.errors import CONFLICT
from api.idempotency import REUSED_KEY, repeatable
from api.pages import After, Limit, Page, page
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from db.queries.jobs import cancel_job, list_jobs
from db.states import JobKind

router = make_router("batches")


@router.post(
    "/v1/batches",
    response_model=BatchOut,
    summary="Send the requests of a file",
    responses=REUSED_KEY,
)
@repeatable
def create_batch(unit: Unit, body: BatchRequest) -> BatchOut:
    """It is a job of kind `batch`, under the same id in `/v1/jobs`."""
    return batch_out(service.create(unit, body))


@router.get("/v1/batches", response_model=Page[BatchOut], summary="List batches, newest first")
@transactional
def list_batches(unit: Unit, after: After = None, limit: Limit = 20) -> Page[BatchOut]:
    jobs, more = list_jobs(
        unit.session, project_id=unit.project_id, kind=JobKind.BATCH, after=after, limit=limit
    )
    return page([batch_out(job) for job in jobs], more)


@router.get("/v1/batches/{batch_job_id}", response_model=BatchOut, summary="Look at a batch")
@transactional
def get_batch(unit: Unit, batch_job_id: str) -> BatchOut:
    return batch_out(service.find(unit, batch_job_id))


@router.post(
    "/v1/batches/{batch_job_id}/cancel",
    response_model=BatchOut,
    summary="Cancel a batch",
    responses=CONFLICT,
)
@transactional
def cancel_batch(unit: Unit, batch_job_id: str) -> BatchOut:
    """What was answered until then is in its files."""
    service.find(unit, batch_job_id)
    return batch_out(cancel_job(unit.session, batch_job_id, project_id=unit.project_id))
