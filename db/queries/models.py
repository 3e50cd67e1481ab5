"""Finding models by the names that people use: `faq`, `faq:Q8_0`, `faq@2`, `faq@2:Q8_0`.

A checkpoint's id, with or without a quantization, names the newest version that was exported from it.
`ft:…` is an alias, of a version or of a checkpoint.
"""

import re
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload, selectinload

from db.errors import NotFound
from db.models import Checkpoint, Model, ModelFile, ModelVersion, Step
from db.params.values import CHECKPOINT_ID
from db.queries.aliases import aliased_version, is_alias, named_checkpoint
from db.queries.checkpoints import exported_version, not_exported

# A name holds nothing that Postgres cannot: neither NUL nor halves of surrogate pairs.
REFERENCE = re.compile(
    r"(?P<name>[^@:\x00-\x1f\ud800-\udfff]+)(?:@(?P<version>\d{1,9}))?(?::(?P<quantization>[A-Za-z0-9_]+))?"
)


@dataclass(frozen=True)
class Served:
    """The file that answers to a reference."""

    model: Model
    version: ModelVersion
    file: ModelFile


def list_models(session: Session, project_id: str) -> list[Model]:
    """Every name of a project, in the order in which they were made."""
    query = select(Model).where(Model.project_id == project_id).order_by(Model.created_at, Model.id)
    return list(session.scalars(query))


def find_model(session: Session, project_id: str, name: str, *, lock: bool = False) -> Model | None:
    query = select(Model).where(Model.project_id == project_id, Model.name == name)
    # In one statement with its files: every question of a model begins here.
    query = query.options(joinedload(Model.current_version).joinedload(ModelVersion.files))
    if lock:
        query = query.with_for_update(of=Model).execution_options(populate_existing=True)
    return session.scalars(query).unique().one_or_none()


def list_versions(session: Session, model_id: str) -> list[ModelVersion]:
    query = select(ModelVersion).where(ModelVersion.model_id == model_id).order_by(ModelVersion.number)
    return list(session.scalars(query.options(selectinload(ModelVersion.aliases))))


def versions_by_model(session: Session, project_id: str) -> dict[str, list[ModelVersion]]:
    """The versions of every model of a project, by the model's id, with files and aliases."""
    query = select(ModelVersion).join(Model, ModelVersion.model_id == Model.id)
    query = query.where(Model.project_id == project_id).order_by(ModelVersion.number)
    query = query.options(selectinload(ModelVersion.aliases))
    found: dict[str, list[ModelVersion]] = {}
    for version in session.scalars(query):
        found.setdefault(version.model_id, []).append(version)
    return found


def get_model(session: Session, project_id: str, name: str, *, lock: bool = False) -> Model:
    """Find a model by its bare name.

    Raises:
        NotFound: lists the names there are.
    """
    model = find_model(session, project_id, name, lock=lock)
    if model is None:
        known = ", ".join(row.name for row in list_models(session, project_id)) or "none"
        raise NotFound(
            f"There is no model {name!r}. There are: {known}.", param="model", code="model_not_found"
        )
    return model


def named_model(session: Session, project_id: str, reference: str) -> Model:
    """The model that a reference of any form names. By its bare name it need not have been made yet.

    Raises:
        NotFound: no such model, version or quantization.
    """
    if is_bare(reference):
        return get_model(session, project_id, reference)
    return resolve(session, project_id, reference).model


def is_bare(reference: str) -> bool:
    """Whether it names a model alone: no version, no quantization, no checkpoint, no alias."""
    match = REFERENCE.fullmatch(reference)
    has_neither = match is None or (match["version"] is None and match["quantization"] is None)
    return has_neither and not is_alias(reference) and not CHECKPOINT_ID.fullmatch(reference)


def resolve(session: Session, project_id: str, reference: str) -> Served:
    """Find the file that answers to `reference`.

    Raises:
        NotFound: no such model, version or quantization, or the model is not made yet, or not served.
    """
    if is_alias(reference):
        found = _aliased(session, project_id, reference)
        if found is not None:
            return found
    match = REFERENCE.fullmatch(reference)
    if match is None and is_alias(reference):
        raise NotFound(
            f"There is no model {reference!r}: it has not been made, or is deleted.",
            param="model",
            code="model_not_found",
        )
    if match is None:
        raise NotFound(f"{reference!r} is not a model's name.", param="model", code="model_not_found")
    model, version = _model_and_version(session, project_id, match["name"], match["version"])
    wanted = match["quantization"]
    for file in version.files:
        if wanted is None or file.quantization.lower() == wanted.lower():
            return Served(model, version, file)
    if not version.files:
        raise NotFound(
            f"Nothing of model {model.name!r} is served: its weights are stored quantised, for fine-tunes to "
            "start from (base_model), and for backends of type transformers to answer with.",
            param="model",
            code="model_not_served",
        )
    known = ", ".join(file.quantization for file in version.files)
    raise NotFound(
        f"Model {model.name!r} is not published as {wanted}. It is as: {known}.",
        param="model",
        code="model_not_found",
    )


def _aliased(session: Session, project_id: str, reference: str) -> Served | None:
    version = aliased_version(session, project_id, reference)
    if version is None:
        checkpoint = named_checkpoint(session, project_id, reference)
        if checkpoint is None:
            return None
        version = _version_of_last(session, checkpoint)
        if version is None:
            return resolve(session, project_id, checkpoint.id)
    model = session.get_one(Model, version.model_id)
    return Served(model, version, version.files[0])


def _version_of_last(session: Session, checkpoint: Checkpoint) -> ModelVersion | None:
    """What the fine-tune published, if that is the checkpoint's weights: no export would make another."""
    query = select(Step).where(Step.job_id == checkpoint.job_id, Step.name == "train")
    train = session.scalars(query).first()
    taken = ((train.result if train is not None else None) or {}).get("best_checkpoint") or ""
    if (
        train is None
        or train.succeeded_attempt != checkpoint.attempt
        or not checkpoint.path.endswith(f"/{taken}")
    ):
        return None
    made = select(ModelVersion).where(ModelVersion.job_id == checkpoint.job_id)
    return session.scalars(made.order_by(ModelVersion.created_at.desc()).limit(1)).first()


def _model_and_version(
    session: Session, project_id: str, name: str, number: str | None
) -> tuple[Model, ModelVersion]:
    if CHECKPOINT_ID.fullmatch(name) and number is None:
        exported = exported_version(session, name, project_id=project_id)
        error = not_exported(session, name, project_id=project_id) if exported is None else None
        if error is not None:
            raise error
        if exported is not None:
            return exported
    model = get_model(session, project_id, name)
    version = model.current_version
    if number is not None:
        version = next((row for row in list_versions(session, model.id) if row.number == int(number)), None)
        if version is None:
            raise NotFound(
                f"Model {model.name!r} has no version {number}.", param="model", code="model_not_found"
            )
    if version is None:
        raise NotFound(
            f"Model {model.name!r} has not been made yet: a job that names it as base_model makes it, and so "
            f"does `lathe pretrain --name {model.name}`.",
            param="model",
            code="model_not_ready",
        )
    return model, version
