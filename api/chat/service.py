"""Which server answers for a model, and what it is asked."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from api.chat.schemas import GenerateParams, GenerateRequest
from api.unit_of_work import Unit
from db.errors import NotFound
from db.models import Model, ModelVersion
from db.queries.models import resolve
from db.settings import Settings

# Parameters of /generate, as chat calls them on llama-server.
CHAT_NAMES = {
    "n_predict": "max_tokens",
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "stop": "stop",
    "repeat_penalty": "repeat_penalty",
    "seed": "seed",
}


@dataclass(frozen=True)
class Backend:
    """A server that holds a model, and the model's name there."""

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
        return Backend(settings.ollama_url, "", name)
    return Backend(settings.chat_url, settings.chat_server_key.get_secret_value(), name)


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


def chat_body(request: GenerateRequest, model: str) -> dict[str, Any]:
    """A prompt of /generate as one turn of a chat, so that it meets the template that the model learnt."""
    params: GenerateParams = request.params
    given = {name: value for name, value in params.model_dump().items() if value is not None}
    if given.get("n_predict") == -1:
        del given["n_predict"]  # no limit, which is what chat does anyway
    options = {CHAT_NAMES[name]: value for name, value in given.items()}
    return {"model": model, "messages": [{"role": "user", "content": request.prompt}], **options}
