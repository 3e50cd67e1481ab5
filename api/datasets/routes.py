"""HTTP of training data."""

from typing import Annotated

from fastapi import Body

from api.idempotency import REUSED_KEY, repeatable
from api.jobs.awaiting import awaitable
from api.jobs.schemas import EXAMPLES, REQUESTS, JobOut
from api.jobs.submission import submit
from api.jobs.views import job_out
from api.routing import make_router
from api.unit_of_work import Unit
from db.params.inspect import InspectParams
from db.states import JobKind

router = make_router("datasets")
InspectBody = Annotated[
    InspectParams, Body(openapi_examples={"faq": {"value": EXAMPLES[JobKind.INSPECT]["params"]}})
]


@router.post(
    "/v1/datasets/inspect",
    status_code=202,
    response_model=JobOut,
    summary="Look at training data",
    responses={200: {"model": JobOut, "description": "The job has ended within `wait`."}, **REUSED_KEY},
)
@awaitable
@repeatable
def inspect_dataset(unit: Unit, body: InspectBody) -> JobOut:
    """Rows, tokens, what would be cut, doubled or leak, and the first rows as the model would learn them.

    A job of the kind `inspect`, which trains nothing and reads the data as a training would.
    """
    request = REQUESTS[JobKind.INSPECT](kind=JobKind.INSPECT, params=body)
    return job_out(submit(unit, request))
