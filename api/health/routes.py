"""HTTP of health. Both answer without a key, for whoever watches."""

from fastapi import Request, Response

from api.health.schemas import Alive, Readiness
from api.health.service import readiness
from api.routing import make_router
from api.unit_of_work import services_of

router = make_router("health")


@router.get("/healthz", response_model=Alive, summary="Whether the API lives")
async def healthz(request: Request) -> Alive:
    return Alive(version=request.app.version)


@router.get(
    "/readyz",
    response_model=Readiness,
    summary="Whether jobs can run",
    responses={503: {"model": Readiness, "description": "A required part is missing."}},
)
async def readyz(request: Request, response: Response) -> Readiness:
    """Database, broker and a live worker for each queue must be there; the model servers are only shown."""
    found = await readiness(services_of(request))
    if found.status != "ready":
        response.status_code = 503
        response.headers["retry-after"] = "5"
    return found
