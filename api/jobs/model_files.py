"""Where the files of a published model lie: the job that has trained it, its weights, its GGUF files."""

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select

from api.jobs import exporting
from api.unit_of_work import Unit
from db import sources
from db.errors import Conflict, InvalidInput, NotFound
from db.models import Artifact, Job, ModelFile, ModelVersion
from db.params.export import ExportParams
from db.queries.jobs import get_job
from db.queries.models import REFERENCE, Served, is_bare, resolve
from db.sources import Held, Source, gone
from db.states import JobKind
from serving.served_adapters import base_beside

DERIVED_MAX = 100  # how often a model may have been created from another


def named_version(unit: Unit, reference: str) -> Served:
    """What a param `model` names.

    Raises:
        InvalidInput: there is no such model, or one of its files is named.
    """
    try:
        served = resolve(unit.session, unit.project_id, reference)
    except NotFound as error:
        raise InvalidInput(f"model: {error.message}", param="model", code=error.code) from error
    match = REFERENCE.fullmatch(reference)
    if not is_bare(reference) and match is not None and match["quantization"] is not None:
        raise InvalidInput(
            "model: name it without a quantization. quantizations says which GGUF files are meant.",
            param="model",
        )
    return served


def original_of(unit: Unit, version: ModelVersion) -> ModelVersion:
    """What a model was created or copied from in the end, which has the files."""
    for _ in range(DERIVED_MAX):
        before = version.details.get("from")
        if before is None:
            return version
        try:
            version = resolve(unit.session, unit.project_id, before).version
        except NotFound as error:
            raise gone(before) from error
    raise gone("the model")


def job_of(unit: Unit, version: ModelVersion) -> Job:
    try:
        return get_job(unit.session, version.job_id or "", project_id=unit.project_id)
    except NotFound as error:
        raise Conflict(
            "The job that has trained this model is deleted, and its files with it: only the GGUF files that "
            'are served are left, which a push takes with what "gguf".',
            code="source_gone",
        ) from error


def weights_of(unit: Unit, version: ModelVersion) -> tuple[Source, Job] | None:
    """The weights of a version, as a training or a pull has left them, and the job that made it; None for one
    that was pulled as it is served.

    Raises:
        Conflict: they are no longer there.
    """
    root = unit.settings.storage_root
    owner = job_of(unit, version)
    if version.weights is not None and owner.kind != JobKind.FINE_TUNE:
        source = sources.of_weights(root, version.weights)
        source.about |= {"kind": owner.kind, "job": owner.id, "adapter": False}
        return source, owner
    if owner.kind == JobKind.PULL:
        return None
    if owner.kind == JobKind.EXPORT:
        return sources.held_by(root, owner.id) or _exported(unit, owner), owner
    return exporting.source_of(unit, exporting.Chosen(owner, None)), owner


def chosen_files(version: ModelVersion, quantizations: Sequence[str] | None) -> list[ModelFile]:
    """The files of a version that `quantizations` names; None: all.

    Raises:
        InvalidInput: it is not published as one of them.
    """
    known = {file.quantization: file for file in version.files}
    wanted = quantizations or list(known)
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InvalidInput(
            f"quantizations: it is not published as {', '.join(missing)}. It is as: {', '.join(known)}.",
            param="quantizations",
        )
    return [known[name] for name in wanted]


def held_file(unit: Unit, version: ModelVersion, file: ModelFile) -> Held:
    query = select(Artifact.name, Artifact.path).where(
        Artifact.job_id == version.job_id, Artifact.sha256 == file.sha256
    )
    row = unit.session.execute(query).first()
    settings = unit.settings
    places: list[tuple[Path, str]] = [(settings.storage_root / row.path, row.name)] if row is not None else []
    places.append((settings.served_models_dir / f"{file.backend_name}.gguf", f"{file.backend_name}.gguf"))
    for path, name in places:
        if path.is_file():
            return Held(path, f"gguf/{name}", file.bytes, file.sha256)
    raise Conflict(
        f"The {file.quantization} file is no longer here: it lies with {file.backend} only.",
        code="source_gone",
    )


def held_base(unit: Unit, version: ModelVersion, file: ModelFile) -> Held | None:
    """The base's file beside which an adapter is served; None: `file` is a whole model's.

    Raises:
        Conflict: it is not here.
    """
    about = (version.details.get("bases") or {}).get(file.quantization)
    if about is None:
        return None
    path = base_beside(unit.settings.served_models_dir, file.backend_name)
    if path is None or not path.is_file():
        raise Conflict(
            f"The base's {file.quantization} file is no longer here: it lies with {file.backend} only.",
            code="source_gone",
        )
    return Held(path, f"gguf/base-{file.quantization}.gguf", about["bytes"], about["sha256"])


def _exported(unit: Unit, export: Job) -> Source:
    """What an export was made from, that has let go of it."""
    try:
        named = ExportParams.model_validate(export.params)
        return exporting.source_of(unit, exporting.choose(unit, named))
    except InvalidInput as error:
        raise gone(f"job {export.id}") from error
