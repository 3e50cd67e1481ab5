"""Which weights a job starts from: the models that a request may name as its base.

tiny, tiny@2        a model of this server that has weights, or whose recipe makes them
my-folder           a folder of the operator's LATHE_BASE_MODELS_DIR
org/name[@revision] a model of the Hugging Face hub
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.models import Job, Model, ModelVersion
from db.params.pretrain import PretrainParams
from db.queries.jobs import create_job
from db.queries.models import find_model, list_models
from db.settings import Settings
from db.states import JobKind, JobStatus

OWN_MODEL = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?P<version>\d{1,9}))?")
FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w.-][\w./-]*))?", re.ASCII)
UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.PAUSED)


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found.

    Args:
        name: the reference, with the version of a model of this server: `tiny@1`.
        source: `storage` (a model of this server), `folder` (the operator's) or `hub`.
        location: a folder relative to the storage root, an absolute folder, or a hub id. None while a
            job is still to make the weights.
        revision: of a hub id.
        waits_for_job_id: the job that makes the weights, while there are none.
        made_by: the job that made the weights of a model of this server.
        made_from: of weights that were quantised here: the reference of the 16-bit ones.
    """

    name: str
    source: Literal["storage", "folder", "hub"]
    location: str | None
    revision: str | None = None
    waits_for_job_id: str | None = None
    made_by: str | None = None
    made_from: str | None = None


def resolve_base_model(
    session: Session, settings: Settings, project_id: str, reference: str, *, param: str = "base_model"
) -> BaseModel:
    """Find the weights that `reference` names.

    Where a model has a recipe but no weights yet, the job that makes them is joined, or created once;
    `waits_for_job_id` names it, and the caller hands that to `create_job` in the same transaction.

    Raises:
        InvalidInput: there is no such base model; the message lists those there are. `param` names the
            field that held the reference.
    """
    own = OWN_MODEL.fullmatch(reference)
    # Locked, so that its version or its pretrain job cannot come or go before our caller has committed.
    model = find_model(session, project_id, own["name"], lock=True) if own else None
    if own is not None and model is not None:
        return _own_model(session, model, own["version"], param)
    if FOLDER.fullmatch(reference) and settings.base_models_dir is not None:
        folder = settings.base_models_dir / reference
        if (folder / "config.json").is_file():
            return BaseModel(name=reference, source="folder", location=str(folder))
    hub = HUB_ID.fullmatch(reference)
    if hub is not None:
        return BaseModel(name=reference, source="hub", location=hub["id"], revision=hub["revision"])
    known = ", ".join(known_base_models(session, settings, project_id)) or "none yet"
    raise InvalidInput(
        f"There is no base model {reference!r}. There are: {known}; or name one of the Hugging Face hub "
        "as org/name, such as Qwen/Qwen3-0.6B.",
        param=param,
        code="model_not_found",
    )


def known_base_models(session: Session, settings: Settings, project_id: str) -> list[str]:
    """The base models of this server and its operator, by name."""
    with_weights = select(ModelVersion.model_id).where(ModelVersion.weights.is_not(None))
    ids = set(session.scalars(with_weights.distinct()))
    names = [row.name for row in list_models(session, project_id) if row.recipe or row.id in ids]
    return names + _operators_folders(settings.base_models_dir)


def _operators_folders(root: Path | None) -> list[str]:
    if root is None or not root.is_dir():
        return []
    return sorted(
        path.name
        for path in root.iterdir()
        if FOLDER.fullmatch(path.name) and (path / "config.json").is_file()
    )


def _own_model(session: Session, model: Model, number: str | None, param: str) -> BaseModel:
    """The asked version of a model of this server, or the newest one that has weights."""
    made_from = ModelVersion.details["quantized_from"].as_string().label("made_from")
    columns = select(ModelVersion.number, ModelVersion.weights, ModelVersion.job_id, made_from)
    columns = columns.order_by(ModelVersion.number)
    query = columns.where(ModelVersion.model_id == model.id, ModelVersion.weights.is_not(None))
    with_weights = session.execute(query).all()
    wanted = [row for row in with_weights if number is None or row.number == int(number)]
    if wanted:
        found = wanted[-1]
        name = f"{model.name}@{found.number}"
        return BaseModel(name, "storage", found.weights, made_by=found.job_id, made_from=found.made_from)
    if number is None and model.recipe is not None:
        job = _pretrain_job(session, model)
        return BaseModel(name=model.name, source="storage", location=None, waits_for_job_id=job.id)
    versions = ", ".join(f"{model.name}@{row.number}" for row in with_weights)
    if versions:
        raise InvalidInput(
            f"Version {number} of {model.name!r} has no weights to start from: these have: {versions}.",
            param=param,
            code="model_not_found",
        )
    raise InvalidInput(
        f"The model {model.name!r} keeps no weights to start from: only its quantised files are kept. "
        "Name the base model it was made from.",
        param=param,
        code="model_has_no_weights",
    )


def _pretrain_job(session: Session, model: Model) -> Job:
    """Join the job that is making this model, or create it: the caller's lock on the model lets one do so."""
    query = (
        select(Job)
        .where(
            Job.project_id == model.project_id,
            Job.kind == JobKind.PRETRAIN,
            Job.status.in_(UNFINISHED),
            Job.params["name"].as_string() == model.name,
        )
        .order_by(Job.id)
        # A job that ends this instant holds its row; afterwards its status is read anew and not taken.
        .with_for_update(key_share=True)
    )
    job = session.scalars(query).first()
    if job is not None:
        return job
    params = PretrainParams.model_validate(model.recipe).model_dump(mode="json")
    return create_job(session, project_id=model.project_id, kind=JobKind.PRETRAIN, params=params)
