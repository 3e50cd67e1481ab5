"""HTTP of webhooks."""

from typing import Annotated

from fastapi import Body, Request

from api.errors import CONFLICT
from api.idempotency import REUSED_KEY, repeatable
from api.pages import After, Limit, Page, page
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from api.webhooks import service
from api.webhooks.schemas import (
    DeliveryOut,
    EndpointChange,
    EndpointDeleted,
    EndpointOut,
    EndpointRequest,
    EndpointWithSecret,
    EventTypeList,
    Rotation,
    SecretOut,
    SecretWithValue,
    TestRequest,
    TestResult,
)
from api.webhooks.views import (
    delivery_out,
    endpoint_out,
    endpoint_with_secret,
    secret_out,
    secret_with_value,
)
from db.queries.deliveries import get_delivery, list_deliveries, redeliver
from db.queries.jobs import get_job
from db.queries.webhooks import get_endpoint, list_endpoints
from db.webhook_events import DeliveryStatus, EventType

router = make_router("webhooks")

RotationBody = Annotated[
    Rotation | None,
    Body(openapi_examples={"leaked": {"value": {"keep_old_secret_active_for_24_hours": False}}}),
]


@router.get("/v1/webhook_event_types", response_model=EventTypeList, summary="List what can be told")
def list_event_types() -> EventTypeList:
    """`job.*` tells of every job; `fine_tuning.job.*` tells of fine-tunes under OpenAI's names."""
    return EventTypeList(data=list(EventType))


@router.post(
    "/v1/webhook_endpoints",
    response_model=EndpointWithSecret,
    summary="Add a webhook endpoint",
    responses=REUSED_KEY,
)
@repeatable
def create_webhook_endpoint(unit: Unit, body: EndpointRequest) -> EndpointWithSecret:
    """The answer has the signing secret, which no other answer shows.

    A repetition of this request (the same Idempotency-Key within 24 hours) gets the same answer.
    """
    return endpoint_with_secret(service.create_endpoint(unit, body))


@router.get(
    "/v1/webhook_endpoints", response_model=Page[EndpointOut], summary="List webhook endpoints, newest first"
)
@transactional
def list_webhook_endpoints(unit: Unit, after: After = None, limit: Limit = 20) -> Page[EndpointOut]:
    rows, more = list_endpoints(unit.session, project_id=unit.project_id, after=after, limit=limit)
    return page([endpoint_out(row) for row in rows], more)


@router.get(
    "/v1/webhook_endpoints/{endpoint_id}", response_model=EndpointOut, summary="Look at a webhook endpoint"
)
@transactional
def get_webhook_endpoint(unit: Unit, endpoint_id: str) -> EndpointOut:
    return endpoint_out(get_endpoint(unit.session, endpoint_id, project_id=unit.project_id))


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}", response_model=EndpointOut, summary="Change a webhook endpoint"
)
@transactional
def change_webhook_endpoint(unit: Unit, endpoint_id: str, body: EndpointChange) -> EndpointOut:
    """What waits to be delivered goes to the new address too."""
    return endpoint_out(service.change_endpoint(unit, endpoint_id, body))


@router.delete(
    "/v1/webhook_endpoints/{endpoint_id}", response_model=EndpointDeleted, summary="Delete a webhook endpoint"
)
@transactional
def delete_webhook_endpoint(unit: Unit, endpoint_id: str) -> EndpointDeleted:
    """Its deliveries go with it."""
    unit.session.delete(get_endpoint(unit.session, endpoint_id, project_id=unit.project_id))
    return EndpointDeleted(id=endpoint_id)


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/rotate_secret",
    response_model=EndpointWithSecret,
    summary="Replace an endpoint's secret",
)
@transactional
def rotate_endpoint_secret(unit: Unit, endpoint_id: str, body: RotationBody = None) -> EndpointWithSecret:
    """For a day deliveries bear the signatures of both secrets, unless the old one is to end at once."""
    keep_old = (body or Rotation()).keep_old_secret_active_for_24_hours
    return endpoint_with_secret(service.rotate_endpoint(unit, endpoint_id, keep_old=keep_old))


@router.post(
    "/v1/webhook_endpoints/{endpoint_id}/test", response_model=TestResult, summary="Send a sample event"
)
async def try_webhook_endpoint(request: Request, endpoint_id: str, body: TestRequest) -> TestResult:
    """Sent now, and once: the answer has the status that the endpoint gave."""
    return await service.send_test(services_of(request), endpoint_id, body.event_type)


@router.get(
    "/v1/webhook_endpoints/{endpoint_id}/deliveries",
    response_model=Page[DeliveryOut],
    summary="What an endpoint was told, newest first",
)
@transactional
def list_endpoint_deliveries(
    unit: Unit,
    endpoint_id: str,
    status: DeliveryStatus | None = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[DeliveryOut]:
    """Each delivery with every try: when, which status or error, and the beginning of the answer."""
    get_endpoint(unit.session, endpoint_id, project_id=unit.project_id)
    rows, more = list_deliveries(
        unit.session, endpoint_id=endpoint_id, status=status, after=after, limit=limit
    )
    return page([delivery_out(row) for row in rows], more)


@router.get("/v1/jobs/{job_id}/deliveries", response_model=Page[DeliveryOut], summary="Who was told of a job")
@transactional
def list_job_deliveries(
    unit: Unit,
    job_id: str,
    status: DeliveryStatus | None = None,
    after: After = None,
    limit: Limit = 20,
) -> Page[DeliveryOut]:
    get_job(unit.session, job_id, project_id=unit.project_id)
    rows, more = list_deliveries(unit.session, job_id=job_id, status=status, after=after, limit=limit)
    return page([delivery_out(row) for row in rows], more)


@router.get("/v1/webhook_deliveries/{delivery_id}", response_model=DeliveryOut, summary="Look at a delivery")
@transactional
def get_webhook_delivery(unit: Unit, delivery_id: str) -> DeliveryOut:
    return delivery_out(get_delivery(unit.session, delivery_id, project_id=unit.project_id))


@router.post(
    "/v1/webhook_deliveries/{delivery_id}/redeliver",
    response_model=DeliveryOut,
    summary="Send a delivery again",
    responses=CONFLICT,
)
@transactional
def redeliver_webhook(unit: Unit, delivery_id: str) -> DeliveryOut:
    """The same message under the same `webhook-id`, now, and retried for another day if it fails."""
    delivery = get_delivery(unit.session, delivery_id, project_id=unit.project_id, lock=True)
    redeliver(unit.session, delivery)
    return delivery_out(delivery)


@router.get("/v1/webhook_secret", response_model=SecretOut, summary="Look at the project's secret")
@transactional
def get_webhook_secret(unit: Unit) -> SecretOut:
    """What the webhooks of jobs' `webhook_url` are signed with: when it was made, and its end."""
    return secret_out(service.own_secret(unit))


@router.post(
    "/v1/webhook_secret/read",
    response_model=SecretWithValue,
    summary="Read the project's secret, once",
    responses=CONFLICT,
)
@transactional
def read_webhook_secret(unit: Unit) -> SecretWithValue:
    return secret_with_value(service.read_secret(unit))


@router.post(
    "/v1/webhook_secret/rotate_secret", response_model=SecretWithValue, summary="Replace the project's secret"
)
@transactional
def rotate_webhook_secret(unit: Unit, body: RotationBody = None) -> SecretWithValue:
    """For a day deliveries bear the signatures of both secrets, unless the old one is to end at once."""
    keep_old = (body or Rotation()).keep_old_secret_active_for_24_hours
    return secret_with_value(service.rotate_own_secret(unit, keep_old=keep_old))
