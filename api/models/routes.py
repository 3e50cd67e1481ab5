"""HTTP of models."""

from fastapi import APIRouter

from api.errors import CONFLICT
from api.models import service
from api.models.schemas import ModelDeleted, ModelList, ModelOut
from api.unit_of_work import Unit, transactional

router = APIRouter(tags=["models"])


@router.get("/v1/models", response_model=ModelList, summary="List models")
@transactional
def list_models(unit: Unit) -> ModelList:
    return ModelList(data=service.list_all(unit))


@router.get("/v1/models/{model:path}", response_model=ModelOut, summary="Look at a model")
@transactional
def get_model(unit: Unit, model: str) -> ModelOut:
    """By any name it answers to: `faq`, `faq@2`, `faq:Q8_0`."""
    return service.show(unit, model)


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
