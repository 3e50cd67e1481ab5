"""Which server answers for a model."""

from dataclasses import dataclass

from sqlalchemy import select

from api.unit_of_work import Unit
from db.errors import NotFound
from db.models import Model, ModelVersion
from db.queries.models import resolve
from db.settings import Settings


@dataclass(frozen=True)
class Backend:
    """A server that holds a model, and the model's name there. `kind` is `llama_server` or `ollama`."""

    kind: str
    url: str
    api_key: str
    model: str


def backend_of(unit: Unit, reference: str) -> Backend:
    """Find the server that answers for `reference`.

    Raises:
        NotFound: there is no such model, or it has not been made yet; the message lists those there are.
    """
    file = resolve(unit.session, unit.project_id, reference).file
    return _backend(unit.settings, file.backend, file.backend_name)


def _backend(settings: Settings, backend: str, name: str) -> Backend:
    if backend == "ollama":
        return Backend(backend, settings.ollama_url, "", name)
    return Backend(backend, settings.chat_url, settings.chat_server_key.get_secret_value(), name)


def newest_model(unit: Unit) -> str:
    """The name that was published last: what /generate asks unless it is told.

    Raises:
        NotFound: nothing has been published yet.
    """
    query = (
        select(Model.name)
        .join(ModelVersion, Model.current_version_id == ModelVersion.id)
        .where(Model.project_id == unit.project_id)
        .order_by(ModelVersion.created_at.desc())
        .limit(1)
    )
    name = unit.session.scalars(query).first()
    if name is None:
        raise NotFound(
            "No model has been published yet: fine-tune one first.", param="model", code="model_not_ready"
        )
    return name
