"""Which backend answers for a model."""

import math
import re
from dataclasses import replace
from typing import Any

from sqlalchemy import exists, select

from api.jobs.views import seconds_left
from api.unit_of_work import Unit
from db.errors import NotFound, Unavailable
from db.models import Model, ModelFile, ModelVersion
from db.queries.devices import Holding, find_refusing
from db.queries.models import resolve
from serving.backends.roster import Backends, Place
from serving.backends.target import Target
from serving.prompting import Prompting

# Asking anew costs little, and a step may end early; an estimate of hours need not be waited for in one go.
RETRY_AFTER_MIN_SECONDS, RETRY_AFTER_MAX_SECONDS = 2, 3600
RETRY_AFTER_UNKNOWN_SECONDS = 30


# What we publish ends so, and belongs to a project: nobody gets at it by its backend's name for it.
PUBLISHED = re.compile(r"-v-[0-9a-f]{12}$")
PUBLISHED_TO = ("llama_server", "ollama")


def target_of(unit: Unit, backends: Backends, reference: str) -> Target:
    """Find who answers for `reference`: a model of the project, or one that a backend has by itself.

    Raises:
        NotFound: there is no such model, or it has not been made yet; the message lists those there are.
        Unavailable: the backend has made room for a step on its device, and no other has the model.
    """
    named = own_places(unit, backends, reference)
    try:
        served = resolve(unit.session, unit.project_id, reference)
    except NotFound as error:
        if not named:
            raise _telling_of_backends(error, backends) from None
        return target_at(unit, backends, reference, named)
    file = served.file
    twins = [Place(name, file.backend_name) for name in backends.standing_in(file.backend)]
    found = target_at(unit, backends, reference, [Place(file.backend, file.backend_name), *twins, *named])
    # Ollama was given it when the model was created.
    given = served.version.prompting if file.backend != "ollama" else None
    return found if given is None else replace(found, prompting=_prompting(given))


def _prompting(given: dict[str, Any]) -> Prompting:
    return Prompting(given.get("system"), given.get("messages") or (), given.get("parameters") or {})


def _telling_of_backends(error: NotFound, backends: Backends) -> NotFound:
    names = [f"{backend.name}/…" for backend in backends if backend.config.own_models]
    if error.code != "model_not_found" or not names:
        return error
    message = f"{error.message} What backends have by themselves is named {', '.join(names)}."
    return NotFound(message, param=error.param, code=error.code)


def own_places(unit: Unit, backends: Backends, reference: str) -> list[Place]:
    """The backends that have a model of this name by themselves."""
    return [place for place in backends.named(reference) if not is_published(unit, backends, place)]


def target_at(unit: Unit, backends: Backends, reference: str, places: list[Place]) -> Target:
    """Those of the places that can be asked now.

    Raises:
        Unavailable: none can, for the first one's reason.
    """
    found, refusals = [], []
    for place in places:
        backend, holding = backends.get(place.backend), find_refusing(unit.session, place.backend)
        if backend is None:
            refusals.append(_not_configured(reference, place.backend))
        elif holding is not None:
            refusals.append(_made_room(unit, reference, holding))
        else:
            found.append((backend, place.model))
    if not found:
        raise refusals[0]
    return Target(found)


def is_published(unit: Unit, backends: Backends, place: Place) -> bool:
    """Whether it is a published model of some project, by whatever way Ollama lets its name be written."""
    backend = backends.get(place.backend)
    if backend is None or backend.config.type not in PUBLISHED_TO:
        return False
    name = place.model.lower().rpartition("/")[2].partition(":")[0]
    holders = [place.backend, backend.config.stands_in_for]
    known = exists().where(ModelFile.backend.in_(holders), ModelFile.backend_name == name)
    return PUBLISHED.search(name) is not None or unit.session.scalars(select(known)).one()


def _not_configured(reference: str, backend: str) -> Unavailable:
    return Unavailable(
        f"Model {reference!r} is served by the backend {backend!r}, which the settings do not name.",
        param="model",
        code="backend_not_configured",
    )


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
