"""HTTP of models."""

from typing import Annotated, Literal

from fastapi import Query, Request

from api.chat.service import target_of
from api.errors import CONFLICT
from api.idempotency import REUSED_KEY, repeatable
from api.models import creating, service
from api.models.of_backends import own_models, show
from api.models.schemas import (
    CopyModel,
    CreateModel,
    ModelDeleted,
    ModelList,
    ModelLoaded,
    ModelOut,
    ModelsDeleted,
    ModelUnloaded,
)
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from serving.backends.routing import named

router = make_router("models")


@router.get("/v1/models", response_model=ModelList, summary="List models")
async def list_models(request: Request) -> ModelList:
    """The project's own, and those that backends have by themselves, as `backend/model`."""
    services = services_of(request)
    listed = await services.backends.listed()
    data = await services.run_in_transaction(
        lambda unit: [*service.list_all(unit), *own_models(unit, services.backends, listed)]
    )
    return ModelList(data=data)


@router.post(
    "/v1/models",
    status_code=201,
    response_model=ModelOut,
    summary="Create a model from another",
    responses=REUSED_KEY,
)
@repeatable
def create_model(unit: Unit, request: Request, body: CreateModel) -> ModelOut:
    """With a system prompt, parameters and messages of its own, as Ollama's Modelfile does.

    A name that exists gets a new version. Nothing is trained, and no weights are copied.
    """
    unit.after_commit(services_of(request).destinations.forget)
    return creating.create(unit, body)


@router.post(
    "/v1/models/{model:path}/copy",
    status_code=201,
    response_model=ModelOut,
    summary="Copy a model",
    responses=REUSED_KEY,
)
@repeatable
def copy_model(unit: Unit, request: Request, model: str, body: CopyModel) -> ModelOut:
    """Under another name, which stays when the first one is deleted."""
    unit.after_commit(services_of(request).destinations.forget)
    return creating.copy(unit, model, body.name)


@router.delete(
    "/v1/models", response_model=ModelsDeleted, summary="Delete all created models", responses=CONFLICT
)
@transactional
def delete_models(
    unit: Unit,
    request: Request,
    created: Annotated[
        Literal["true"], Query(description="Those that were created or copied, and no others.")
    ],
    confirm: Annotated[Literal["delete"], Query(description="That all of them are meant.")],
) -> ModelsDeleted:
    """What jobs have trained or pulled stays."""
    unit.after_commit(services_of(request).destinations.forget)
    return ModelsDeleted(data=creating.delete_all(unit))


@router.get("/v1/models/{model:path}", response_model=ModelOut, summary="Look at a model")
async def get_model(request: Request, model: str) -> ModelOut:
    """By any name it answers to: `faq`, `faq@2`, `faq:Q8_0`, `backend/model`."""
    services = services_of(request)
    listed = await services.backends.listed() if named(services.backends.configs, model) else {}
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
def delete_model(unit: Unit, request: Request, model: str) -> ModelDeleted:
    """`faq` goes with all its versions; `faq@1` is that version alone, and the name stays with the others.

    When it is the version that the name answers with, the name moves back to the newest one left.
    """
    unit.after_commit(services_of(request).destinations.forget)
    return service.delete(unit, model)
