"""Which backends answer for a model, and which of them can be asked now.

Whoever asks goes by this: the API for its callers, and workers for the rows of a job.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from db.errors import NotFound, Unavailable
from db.models import ModelFile
from db.queries.devices import Holding, find_refusing
from db.queries.models import resolve
from db.queries.runtime import seconds_left
from serving.backends.configuration import BackendConfig
from serving.prompting import Prompting

# Asking anew costs little, and a step may end early; an estimate of hours need not be waited for in one go.
RETRY_AFTER_MIN_SECONDS, RETRY_AFTER_MAX_SECONDS = 2, 3600
RETRY_AFTER_UNKNOWN_SECONDS = 30

# What we publish ends so, and belongs to a project: nobody gets at it by its backend's name for it.
PUBLISHED = re.compile(r"-v-[0-9a-f]{12}$")
PUBLISHED_TO = ("llama_server", "ollama")
# As with names of ours: neither NUL nor halves of surrogate pairs, which Postgres cannot take.
MODEL = re.compile(r"[^\x00-\x1f\ud800-\udfff]{1,256}")
EMBEDDING_MODEL = "default"

Configs = Mapping[str, BackendConfig]


@dataclass(frozen=True)
class Place:
    """A model as one backend has it."""

    backend: str
    model: str


@dataclass(frozen=True)
class Destination:
    """Where a model can be asked: the first place, or the next while that does not answer.

    Args:
        prompting: what each request is given besides.
    """

    places: list[Place]
    prompting: Prompting | None = None


def find_destination(session: Session, project_id: str, configs: Configs, reference: str) -> Destination:
    """Find who answers for `reference`: a model of the project, or one that a backend has by itself.

    Raises:
        NotFound: there is no such model, or it has not been made yet; the message lists those there are.
        Unavailable: the backend has made room for a step on its device, and no other has the model.
    """
    named = own_places(session, configs, reference)
    try:
        served = resolve(session, project_id, reference)
    except NotFound as error:
        if not named:
            raise _telling_of_backends(error, configs) from None
        return Destination(_askable(session, project_id, configs, reference, named))
    file = served.file
    twins = [Place(name, file.backend_name) for name in standing_in(configs, file.backend)]
    places = [Place(file.backend, file.backend_name), *twins, *named]
    # Ollama was given it when the model was created.
    given = served.version.prompting if file.backend != "ollama" else None
    return Destination(
        _askable(session, project_id, configs, reference, places),
        _prompting(given) if given is not None else None,
    )


def find_embedding_destination(
    session: Session, project_id: str, configs: Configs, reference: str
) -> Destination:
    """Find who embeds by the model `reference`.

    Raises:
        NotFound: there is none of that name.
        Unavailable: as for `find_destination`.
    """
    if reference == EMBEDDING_MODEL:
        places = [Place("embeddings", reference)]
    else:
        places = own_places(session, configs, reference)
    if not places:
        raise NotFound(
            f"There is no embedding model {reference!r}. There is: {EMBEDDING_MODEL}.",
            param="model",
            code="model_not_found",
        )
    return Destination(_askable(session, project_id, configs, reference, places))


def named(configs: Configs, reference: str) -> list[Place]:
    """Who answers to a name of the operator's: `backend/model`, or what the file's `models` say."""
    name, slash, model = reference.partition("/")
    if slash and name in configs and configs[name].own_models:
        return [Place(name, model)] if MODEL.fullmatch(model) else []
    return [
        Place(config.name, config.models[reference])
        for config in configs.values()
        if reference in config.models
    ]


def standing_in(configs: Configs, name: str) -> list[str]:
    """Who has the same models as another backend, under the same names."""
    return [config.name for config in configs.values() if config.stands_in_for == name]


def own_places(session: Session, configs: Configs, reference: str) -> list[Place]:
    """The backends that have a model of this name by themselves."""
    return [place for place in named(configs, reference) if not is_published(session, configs, place)]


def is_published(session: Session, configs: Configs, place: Place) -> bool:
    """Whether it is a published model of some project, by whatever way Ollama lets its name be written."""
    config = configs.get(place.backend)
    if config is None or config.type not in PUBLISHED_TO:
        return False
    name = place.model.lower().rpartition("/")[2].partition(":")[0]
    holders = [place.backend, config.stands_in_for]
    known = exists().where(ModelFile.backend.in_(holders), ModelFile.backend_name == name)
    return PUBLISHED.search(name) is not None or session.scalars(select(known)).one()


def _prompting(given: dict[str, Any]) -> Prompting:
    return Prompting(given.get("system"), given.get("messages") or (), given.get("parameters") or {})


def _telling_of_backends(error: NotFound, configs: Configs) -> NotFound:
    names = [f"{config.name}/…" for config in configs.values() if config.own_models]
    if error.code != "model_not_found" or not names:
        return error
    message = f"{error.message} What backends have by themselves is named {', '.join(names)}."
    return NotFound(message, param=error.param, code=error.code)


def _askable(
    session: Session, project_id: str, configs: Configs, reference: str, places: list[Place]
) -> list[Place]:
    """Those of the places that can be asked now.

    Raises:
        Unavailable: none can, for the first one's reason.
    """
    found, refusals = [], []
    for place in places:
        holding = find_refusing(session, place.backend)
        if place.backend not in configs:
            refusals.append(_not_configured(reference, place.backend))
        elif holding is not None:
            refusals.append(_made_room(project_id, reference, holding))
        else:
            found.append(place)
    if not found:
        raise refusals[0]
    return found


def _not_configured(reference: str, backend: str) -> Unavailable:
    return Unavailable(
        f"Model {reference!r} is served by the backend {backend!r}, which the settings do not name.",
        param="model",
        code="backend_not_configured",
    )


def _made_room(project_id: str, reference: str, holding: Holding) -> Unavailable:
    step, device, attempt = holding.step, holding.device, holding.attempt
    assert step is not None and attempt is not None  # noqa: S101, PT018 - for the type checker
    job = step.job_id if attempt.project_id == project_id else "another project's job"
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
