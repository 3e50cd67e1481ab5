"""Which server answers for a model."""

import math
from dataclasses import dataclass

from sqlalchemy import select

from api.jobs.views import seconds_left
from api.unit_of_work import Unit
from db.errors import NotFound, Unavailable
from db.models import Model, ModelVersion
from db.queries.devices import Holding, find_refusing
from db.queries.models import resolve
from db.settings import Settings

# Asking anew costs little, and a step may end early; an estimate of hours need not be waited for in one go.
RETRY_AFTER_MIN_SECONDS, RETRY_AFTER_MAX_SECONDS = 2, 3600
RETRY_AFTER_UNKNOWN_SECONDS = 30


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
        Unavailable: it has made room for a step on its device.
    """
    file = resolve(unit.session, unit.project_id, reference).file
    holding = find_refusing(unit.session, file.backend)
    if holding is not None:
        raise _made_room(unit, reference, holding)
    return _backend(unit.settings, file.backend, file.backend_name)


def _made_room(unit: Unit, reference: str, holding: Holding) -> Unavailable:
    step, device, attempt = holding.step, holding.device, holding.attempt
    assert step is not None and attempt is not None  # noqa: S101, PT018 - for the type checker
    job = step.job_id if attempt.project_id == unit.project_id else "another project's job"
    left = seconds_left(step)
    wait = math.ceil(left) if left is not None else RETRY_AFTER_UNKNOWN_SECONDS
    wait = min(max(wait, RETRY_AFTER_MIN_SECONDS), RETRY_AFTER_MAX_SECONDS)
    when = f", in about {wait} s" if left is not None else ""
    return Unavailable(
        f"Model {reference!r} has been unloaded: step {step.name} of {job} holds GPU {device.index} "
        f"({device.name}), where it is served. It answers again once that step has ended{when}.",
        param="model",
        code="model_unloaded",
        retry_after_seconds=wait,
    )


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
