"""Submitting a push: which files go to the hub, and that nothing takes them away meanwhile."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from api.jobs import exporting
from api.unit_of_work import Unit
from db import sources
from db.errors import Conflict, InvalidInput, NotFound
from db.models import Artifact, Job, ModelFile, ModelVersion
from db.params.export import ExportParams
from db.params.push import PushParams
from db.queries.checkpoints import exported_version
from db.queries.jobs import get_job
from db.queries.models import REFERENCE, Served, is_bare, resolve
from db.sources import Held, Source, gone
from db.states import JobKind

DERIVED_MAX = 100  # how often a model may have been created from another


@dataclass(frozen=True)
class Chosen:
    """The files, and the base that they were trained on; the params say now what they are."""

    params: PushParams
    source: Source
    base: dict[str, str] | None


def choose(unit: Unit, params: PushParams) -> Chosen:
    """Find what is pushed.

    Raises:
        InvalidInput: there is no such thing, or nowhere it may go.
        Conflict: its files are no longer there.
    """
    _check_target(unit, params)
    served = _served(unit, params)
    version = served.version if served is not None else _published(unit, params)
    what = params.what
    if what == "gguf" or (what == "auto" and version is not None and not _has_weights(unit, version)):
        chosen = _gguf(unit, params, version)
    else:
        chosen = _weights(unit, params, version)
    prompting = served.version.prompting if served is not None else None
    chosen.source.about |= {
        "what": chosen.params.what,
        "model": f"{served.model.name}@{served.version.number}" if served is not None else None,
        "prompted": prompting is not None,
        "base": chosen.base,
        "trained": _trained(unit, chosen.source.about),
        "published": _figures(version, chosen.params),
    }
    return chosen


def hold_source(unit: Unit, chosen: Chosen, push: Job) -> None:
    push.base = chosen.base
    exporting.hold(unit, chosen.source, push)


def _check_target(unit: Unit, params: PushParams) -> None:
    if unit.settings.hub_offline:
        raise InvalidInput(
            "repository: LATHE_HUB_OFFLINE is set, so nothing is pushed. Fetch the files by "
            "GET /v1/jobs/{id}/artifacts, and upload them from where there is a network.",
            param="repository",
        )
    owner, allowed = params.repository.partition("/")[0], unit.settings.hub_push_to
    if allowed and owner not in allowed:
        raise InvalidInput(
            f"repository: this server pushes to {', '.join(allowed)} only (LATHE_HUB_PUSH_TO), not to "
            f"{owner}.",
            param="repository",
        )


def _served(unit: Unit, params: PushParams) -> Served | None:
    if params.model is None:
        return None
    try:
        served = resolve(unit.session, unit.project_id, params.model)
    except NotFound as error:
        raise InvalidInput(f"model: {error.message}", param="model", code=error.code) from error
    match = REFERENCE.fullmatch(params.model)
    if not is_bare(params.model) and match is not None and match["quantization"] is not None:
        raise InvalidInput(
            "model: name it without a quantization. quantizations says which GGUF files are pushed.",
            param="model",
        )
    return served


def _published(unit: Unit, params: PushParams) -> ModelVersion | None:
    """The newest version that a job, or the export of a checkpoint, has published."""
    if params.checkpoint is not None:
        found = exported_version(unit.session, params.checkpoint, project_id=unit.project_id)
        return found[1] if found is not None else None
    made = select(ModelVersion).where(ModelVersion.job_id == exporting.choose(unit, params).job.id)
    return unit.session.scalars(made.order_by(ModelVersion.created_at.desc()).limit(1)).first()


def _original(unit: Unit, version: ModelVersion) -> ModelVersion:
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


def _has_weights(unit: Unit, version: ModelVersion) -> bool:
    original = _original(unit, version)
    return original.weights is not None or original.details.get("kind") != JobKind.PULL


def _weights(unit: Unit, params: PushParams, version: ModelVersion | None) -> Chosen:
    """The adapter or the whole model; of a training by itself, what it came to."""
    root = unit.settings.storage_root
    if params.model is None:
        training = exporting.choose(unit, params)
        source, owner = exporting.source_of(unit, training), training.job
    else:
        assert version is not None  # noqa: S101 - for the type checker
        original = _original(unit, version)
        owner = _job_of(unit, original)
        if original.weights is not None:
            source = sources.of_weights(root, original.weights)
            source.about |= {"kind": owner.kind, "job": owner.id, "adapter": False}
        elif owner.kind == JobKind.PULL:
            raise InvalidInput(
                'what: this model was pulled as it is served, and has no weights besides: give "gguf".',
                param="what",
            )
        elif owner.kind == JobKind.EXPORT:
            source = sources.held_by(root, owner.id) or _exported(unit, owner)
        else:
            source = exporting.source_of(unit, exporting.Chosen(owner, None))
    source.files = [held for held in source.files if held.name.startswith("trained/")]
    # What an export has held for long does not say.
    is_adapter = source.about.get("adapter", source.about["kind"] == JobKind.FINE_TUNE)
    if params.what == "adapter" and not is_adapter:
        raise InvalidInput('what: this is a whole model, and no adapter: give "merged".', param="what")
    what = params.what if params.what != "auto" else ("adapter" if is_adapter else "merged")
    base = exporting.base_of(unit, owner) if what == "merged" else owner.base
    return Chosen(params.model_copy(update={"what": what}), source, base if is_adapter else None)


def _exported(unit: Unit, export: Job) -> Source:
    """What an export was made from, that has let go of it."""
    try:
        named = ExportParams.model_validate(export.params)
        return exporting.source_of(unit, exporting.choose(unit, named))
    except InvalidInput as error:
        raise gone(f"job {export.id}") from error


def _job_of(unit: Unit, version: ModelVersion) -> Job:
    try:
        return get_job(unit.session, version.job_id or "", project_id=unit.project_id)
    except NotFound as error:
        raise Conflict(
            "The job that has trained this model is deleted, and its files with it: only the GGUF files "
            'that are served can be pushed, by what "gguf".',
            code="source_gone",
        ) from error


def _gguf(unit: Unit, params: PushParams, version: ModelVersion | None) -> Chosen:
    """The GGUF files of a version, from its job's artifacts or from where they are served."""
    if version is None:
        raise InvalidInput(
            "what: there are no GGUF files, for nothing of this is published yet. Export it first, or push "
            'it as "merged".',
            param="what",
        )
    original = _original(unit, version)
    wanted = params.quantizations or [file.quantization for file in version.files]
    known = {file.quantization: file for file in version.files}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise InvalidInput(
            f"quantizations: it is not published as {', '.join(missing)}. It is as: {', '.join(known)}.",
            param="quantizations",
        )
    held = [_held(unit, original, known[name]) for name in wanted]
    job = unit.session.get(Job, original.job_id) if original.job_id is not None else None
    about = {"kind": original.details.get("kind"), "job": original.job_id}
    source = original.details.get("source") or {}
    about |= {name: source.get(name) for name in ("checkpoint", "step_number", "metrics", "hub")}
    filled = params.model_copy(update={"what": "gguf"})
    return Chosen(filled, Source(about, held), job.base if job is not None else None)


def _held(unit: Unit, version: ModelVersion, file: ModelFile) -> Held:
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


def _trained(unit: Unit, about: dict[str, Any]) -> dict[str, Any] | None:
    """How it was trained, for its card: figures only."""
    job = unit.session.get(Job, about.get("job") or "")
    train = next((step for step in job.steps if step.name == "train"), None) if job is not None else None
    if train is None or train.result is None or about.get("checkpoint"):
        return None
    wanted = ("hyperparameters", "steps", "train_loss", "eval_loss", "trained_tokens")
    return {name: train.result[name] for name in wanted if train.result.get(name) is not None}


def _figures(version: ModelVersion | None, params: PushParams) -> list[dict[str, Any]]:
    files = version.files if version is not None else []
    return [
        {"quantization": file.quantization, "bytes": file.bytes, "verification": file.verification}
        for file in files
        if params.quantizations is None or file.quantization in params.quantizations
    ]
