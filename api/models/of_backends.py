"""Models that backends have by themselves: whoever runs them made them, and Lathe only passes on."""

from collections.abc import Mapping, Sequence

from api.models import service
from api.models.schemas import ModelOut
from api.unit_of_work import Unit
from db.errors import NotFound
from db.queries.models import list_models
from serving.backends.roster import Backends
from serving.backends.routing import own_places

Listed = Mapping[str, Sequence[str]]


def own_models(unit: Unit, backends: Backends, listed: Listed) -> list[ModelOut]:
    """The names that ask a backend's own model: `backend/model`, and the names that the operator gave."""
    taken = {model.name for model in list_models(unit.session, unit.project_id)}
    given = {
        name: backend.name for backend in backends for name in backend.config.models if name not in taken
    }
    found = {f"{backend}/{model}": backend for backend, models in listed.items() for model in models}
    return [
        _model_out(name, backend)
        for name, backend in {**given, **found}.items()
        if own_places(unit.session, backends.configs, name)
    ]


def show(unit: Unit, backends: Backends, listed: Listed, reference: str) -> ModelOut:
    """One model by any name it answers to.

    Raises:
        NotFound: lists what there is.
    """
    try:
        return service.show(unit, reference)
    except NotFound:
        for model in own_models(unit, backends, listed):
            if model.id == reference:
                return model
        raise


def _model_out(name: str, backend: str) -> ModelOut:
    return ModelOut(
        id=name, created=0, owned_by=backend, name=name, status="ready", version=None, versions=[],
        collection_id=None,
    )  # fmt: skip
