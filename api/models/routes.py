"""HTTP of models."""

from fastapi import APIRouter, Request

from api.chat.service import target_of
from api.errors import CONFLICT
from api.models import service
from api.models.of_backends import own_models, show
from api.models.schemas import ModelDeleted, ModelList, ModelLoaded, ModelOut, ModelUnloaded
from api.unit_of_work import Unit, services_of, transactional

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, summary="List models")
async def list_models(request: Request) -> ModelList:
    """The project's own, and those that backends have by themselves, as `backend/model`."""
    services = services_of(request)
    listed = await services.backends.listed()
    data = await services.run_in_transaction(
        lambda unit: [*service.list_all(unit), *own_models(unit, services.backends, listed)]
    )
    return ModelList(data=data)


@router.get("/v1/models/{model:path}", response_model=ModelOut, summary="Look at a model")
async def get_model(request: Request, model: str) -> ModelOut:
    """By any name it answers to: `faq`, `faq@2`, `faq:Q8_0`, `backend/model`."""
    services = services_of(request)
    listed = await services.backends.listed() if services.backends.named(model) else {}
    return await services.run_in_transaction(lambda unit: show(unit, services.backends, listed, model))


@router.post("/v1/models/{model:path}/load", response_model=ModelLoaded, summary="Load a model")
async def load_model(request: Request, model: str) -> ModelLoaded:
    """Brings it into its backend's memory before somebody asks it, and returns once that has begun."""
    services = services_of(request)
    target = await services.run_in_transaction(lambda unit: target_of(unit, services.backends, model))
    return ModelLoaded(id=model, backend=await target.load())


@router.post("/v1/models/{model:path}/unload", response_model=ModelUnloaded, summary="Unload a model")
async def unload_model(request: Request, model: str) -> ModelUnloaded:
    """Frees the memory it takes; the next question loads it again. Refused (409) while it is answering."""
    services = services_of(request)
    target = await services.run_in_transaction(lambda unit: target_of(unit, services.backends, model))
    return ModelUnloaded(id=model, backend=await target.unload())


@router.delete(
    "/v1/models/{model:path}",
    response_model=ModelDeleted,
    summary="Delete a model, or a version",
    responses=CONFLICT,
)
@transactional
def delete_model(unit: Unit, model: str) -> ModelDeleted:
    """`faq` goes with all its versions; `faq@1` is that version alone, and the name stays with the others.

    When it is the version that the name answers with, the name moves back to the newest one left.
    """
    return service.delete(unit, model)
