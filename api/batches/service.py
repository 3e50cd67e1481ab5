"""A batch as OpenAI's clients ask for it, as a submit of ours."""

from api.batches.schemas import BatchRequest
from api.jobs.submission import read_request, submit
from api.unit_of_work import Unit
from db.errors import InvalidInput, NotFound
from db.models import Job
from db.queries.jobs import get_job
from db.states import JobKind

# What our params are called here.
THEIR_NAMES = {"input_file": "input_file_id"}


def create(unit: Unit, body: BatchRequest) -> Job:
    """Submit a batch.

    Raises:
        InvalidInput: as for any submit.
    """
    expiry = body.output_expires_after
    params = {
        "input_file": body.input_file_id,
        "endpoint": body.endpoint,
        "output_expires_after_seconds": expiry.seconds if expiry is not None else None,
    }
    try:
        return submit(
            unit, read_request({"kind": JobKind.BATCH, "params": params, "metadata": body.metadata})
        )
    except InvalidInput as error:
        param = THEIR_NAMES.get(error.param or "", error.param)
        message = error.message.replace("input_file", "input_file_id")
        raise InvalidInput(message, param=param, code=error.code) from error


def find(unit: Unit, job_id: str) -> Job:
    """A batch of the project.

    Raises:
        NotFound: there is none by that id.
    """
    job = get_job(unit.session, job_id, project_id=unit.project_id)
    if job.kind != JobKind.BATCH:
        raise NotFound(f"Job {job_id} is no batch: GET /v1/jobs/{job_id} shows it.", param="id")
    return job
