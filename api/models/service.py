"""What happens to models: shown with their versions, and deleted with what serves them."""

from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.models.schemas import ModelDeleted, ModelOut, QuantizationOut, VersionOut
from api.pages import unix_seconds
from api.unit_of_work import Unit
from db.errors import Conflict, InvalidInput, NotFound
from db.kinds import MODEL_FIELDS
from db.models import Job, Model, ModelFile, ModelVersion
from db.queries.aliases import is_alias
from db.queries.collections import own_collection, own_collections
from db.queries.models import (
    REFERENCE,
    get_model,
    is_bare,
    list_models,
    list_versions,
    resolve,
    versions_by_model,
)
from db.states import ENDED_JOB
from serving.backends.routing import EMBEDDING_MODEL
from serving.removal import remove_served


def list_all(unit: Unit) -> list[ModelOut]:
    models = list_models(unit.session, unit.project_id)
    versions = versions_by_model(unit.session, unit.project_id)
    own = own_collections(unit.session, unit.project_id)
    rows = [_model_out(model, versions.get(model.id, []), own.get(model.id)) for model in models]
    return [*rows, _embedding_model()]


def show(unit: Unit, reference: str) -> ModelOut:
    """One model by any name it answers to; a name with a version or quantization shows that one alone.

    Raises:
        NotFound: lists what there is.
    """
    if reference == EMBEDDING_MODEL:
        return _embedding_model()
    if is_bare(reference):
        model = get_model(unit.session, unit.project_id, reference)
        versions = list_versions(unit.session, model.id)
        return _model_out(model, versions, _own_collection_id(unit, model))
    served = resolve(unit.session, unit.project_id, reference)
    shown = _version_out(served.model, served.version)
    match = REFERENCE.fullmatch(reference)
    if match is not None and match["quantization"] is not None:
        shown.quantizations = [
            row for row in shown.quantizations if row.quantization == served.file.quantization
        ]
    return ModelOut(
        id=reference,
        created=unix_seconds(served.version.created_at),
        name=served.model.name,
        status="ready",
        version=served.version.number,
        versions=[shown],
        collection_id=_own_collection_id(unit, served.model),
    )


def delete(unit: Unit, reference: str) -> ModelDeleted:
    """Delete a name with all its versions, or by `name@2`, or an alias, that version alone.

    When the version is the one that the name answers with, the name moves back to the newest one left.
    The server that holds the files lets go of them before the transaction ends: if it does not answer,
    nothing is deleted, and asking again goes on where this left off. A model of the catalogue stays, as one
    that has not been made yet. With a name goes its own collection; the files that were imported stay.

    Raises:
        NotFound: lists what can be deleted.
        Conflict: a job that has not ended starts from it.
        InvalidInput: the reference names a single quantization.
        Unavailable: the server that holds the files does not answer.
    """
    name, number = _name_and_version(_without_alias(unit, reference))
    model = _lock(unit, name)
    versions = list_versions(unit.session, model.id)
    doomed = _doomed(unit, model, versions, number)
    _refuse_if_needed(unit, model, number)
    left = [row for row in versions if row not in doomed]
    is_over = not left and model.recipe is None
    collection_id = _own_collection_id(unit, model) if is_over else None
    _delete_versions(unit, model, doomed, left)
    return ModelDeleted(
        id=reference,
        versions=[row.number for row in doomed],
        current_version=left[-1].number if left else None,
        collection_id=collection_id,
    )


def _without_alias(unit: Unit, reference: str) -> str:
    """`faq@2` for an alias of that version; any other name as it is."""
    if not is_alias(reference) or REFERENCE.fullmatch(reference):  # a quantization of a model named `ft`
        return reference
    served = resolve(unit.session, unit.project_id, reference)
    return f"{served.model.name}@{served.version.number}"


def _name_and_version(reference: str) -> tuple[str, int | None]:
    match = REFERENCE.fullmatch(reference)
    if reference == EMBEDDING_MODEL:
        raise InvalidInput("The embedding model cannot be deleted.", param="model")
    if "/" in reference:
        raise InvalidInput(
            f"{reference!r} is a backend's own: whoever runs it can delete it there.", param="model"
        )
    if match is None:
        raise InvalidInput(f"{reference!r} is not a model's name.", param="model")
    if match["quantization"] is not None:
        raise InvalidInput(
            f"A quantization cannot be deleted alone: name {match['name']}, or a version of it.",
            param="model",
        )
    return match["name"], int(match["version"]) if match["version"] else None


def _doomed(unit: Unit, model: Model, versions: list[ModelVersion], number: int | None) -> list[ModelVersion]:
    """The versions that go; none at all is what was asked for only of a name without a recipe."""
    doomed = [row for row in versions if number in (None, row.number)]
    if doomed or (number is None and model.recipe is None):
        return doomed
    if number is None:
        message = f"Model {model.name!r} has not been made yet. {_deletable(unit)}"
    else:
        known = ", ".join(f"{model.name}@{row.number}" for row in versions) or "none"
        message = f"Model {model.name!r} has no version {number}. There are: {known}."
    raise NotFound(message, param="model", code="model_not_found")


def _lock(unit: Unit, name: str) -> Model:
    try:
        return get_model(unit.session, unit.project_id, name, lock=True)
    except NotFound:
        raise NotFound(
            f"There is no model {name!r}. {_deletable(unit)}", param="model", code="model_not_found"
        ) from None


def _deletable(unit: Unit) -> str:
    names = [
        row.name
        for row in list_models(unit.session, unit.project_id)
        if row.recipe is None or row.current_version
    ]
    return f"What can be deleted: {', '.join(names) or 'nothing'}."


def _refuse_if_needed(unit: Unit, model: Model, number: int | None) -> None:
    """A job that has not ended may still read what it starts from."""
    unfinished = unit.session.execute(
        select(Job.id, Job.params, Job.base).where(
            Job.project_id == unit.project_id, Job.status.not_in(ENDED_JOB)
        )
    )
    for job_id, params, base in unfinished:
        for reference in ((base or {}).get("name"), *(params.get(field) for field in MODEL_FIELDS)):
            name, _, wanted = str(reference or "").partition("@")
            if name == model.name and (number is None or wanted in ("", str(number))):
                raise Conflict(
                    f"Job {job_id} starts from {reference}: cancel it, or wait until it ends.",
                    param="model",
                    code="model_in_use",
                )


def _delete_versions(unit: Unit, model: Model, doomed: list[ModelVersion], left: list[ModelVersion]) -> None:
    session = unit.session
    files = [file for version in doomed for file in version.files]
    model.current_version_id = left[-1].id if left else None
    session.flush()
    for version in doomed:
        session.delete(version)
    session.flush()
    if not left and model.recipe is None:
        session.refresh(model)
        session.delete(model)
        session.flush()
    for file in files:
        if not _is_served_for_another(session, file):
            remove_served(unit.settings, file.backend, file.backend_name)


def _is_served_for_another(session: Session, file: ModelFile) -> bool:
    """The backend's name holds the content's hash, so what was published twice is there once."""
    query = select(func.count()).where(
        ModelFile.backend == file.backend, ModelFile.backend_name == file.backend_name
    )
    return session.scalars(query).one() > 0


def _own_collection_id(unit: Unit, model: Model) -> str | None:
    collection = own_collection(unit.session, model)
    return collection.id if collection is not None else None


def _model_out(model: Model, versions: list[ModelVersion], collection_id: str | None) -> ModelOut:
    current = model.current_version
    return ModelOut(
        id=model.name,
        created=unix_seconds(model.created_at),
        name=model.name,
        status=_status(current),
        version=current.number if current is not None else None,
        versions=[_version_out(model, version) for version in versions],
        collection_id=collection_id,
    )


def _status(current: ModelVersion | None) -> Literal["ready", "not made yet", "not served"]:
    if current is None:
        return "not made yet"
    return "ready" if current.files else "not served"


def _version_out(model: Model, version: ModelVersion) -> VersionOut:
    name = f"{model.name}@{version.number}"
    is_current = version.id == model.current_version_id
    return VersionOut(
        number=version.number,
        name=name,
        created_at=unix_seconds(version.created_at),
        job_id=version.job_id,
        base_model=version.base_model,
        details=version.details,
        prompting=version.prompting,
        aliases=[alias.name for alias in version.aliases],
        can_be_base=version.weights is not None,
        quantizations=[
            QuantizationOut(
                name=f"{model.name if is_current else name}:{file.quantization}",
                quantization=file.quantization,
                bytes=file.bytes,
                sha256=file.sha256,
                backend=file.backend,
                verification=file.verification,
            )
            for file in version.files
        ],
    )


def _embedding_model() -> ModelOut:
    return ModelOut(
        id=EMBEDDING_MODEL,
        created=0,
        name=EMBEDDING_MODEL,
        type="embedding",
        status="ready",
        version=None,
        versions=[],
        collection_id=None,
    )
