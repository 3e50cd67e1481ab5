"""Submitting a push: which files go to the hub, and that nothing takes them away meanwhile."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from api.jobs import exporting
from api.jobs.model_files import chosen_files, held_file, named_version, original_of, weights_of
from api.unit_of_work import Unit
from db.errors import InvalidInput
from db.models import Artifact, Job, ModelVersion
from db.params.push import PushParams
from db.queries.checkpoints import exported_version
from db.sources import Held, Source
from db.states import JobKind

CARD_ARTIFACTS = ("recipe.json", "curves.png")


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
    served = named_version(unit, params.model) if params.model is not None else None
    version = served.version if served is not None else _published(unit, params)
    what = params.what
    if what == "gguf" or (what == "auto" and version is not None and not _has_weights(unit, version)):
        chosen = _gguf(unit, params, version)
    else:
        chosen = _weights(unit, params, version)
    chosen.source.files += _card(unit, chosen.source.about)
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


def _published(unit: Unit, params: PushParams) -> ModelVersion | None:
    """The newest version that a job, or the export of a checkpoint, has published."""
    if params.checkpoint is not None:
        found = exported_version(unit.session, params.checkpoint, project_id=unit.project_id)
        return found[1] if found is not None else None
    made = select(ModelVersion).where(ModelVersion.job_id == exporting.choose(unit, params).job.id)
    return unit.session.scalars(made.order_by(ModelVersion.created_at.desc()).limit(1)).first()


def _has_weights(unit: Unit, version: ModelVersion) -> bool:
    original = original_of(unit, version)
    return original.weights is not None or original.details.get("kind") != JobKind.PULL


def _weights(unit: Unit, params: PushParams, version: ModelVersion | None) -> Chosen:
    """The adapter or the whole model; of a training by itself, what it came to."""
    if params.model is None:
        training = exporting.choose(unit, params)
        source, owner = exporting.source_of(unit, training), training.job
    else:
        assert version is not None  # noqa: S101 - for the type checker
        found = weights_of(unit, original_of(unit, version))
        if found is None:
            raise InvalidInput(
                'what: this model was pulled as it is served, and has no weights besides: give "gguf".',
                param="what",
            )
        source, owner = found
    source.files = [held for held in source.files if held.name.startswith("trained/")]
    # What an export has held for long does not say.
    is_adapter = source.about.get("adapter", source.about["kind"] == JobKind.FINE_TUNE)
    if params.what == "adapter" and not is_adapter:
        raise InvalidInput('what: this is a whole model, and no adapter: give "merged".', param="what")
    what = params.what if params.what != "auto" else ("adapter" if is_adapter else "merged")
    base = exporting.base_of(unit, owner) if what == "merged" else owner.base
    return Chosen(params.model_copy(update={"what": what}), source, base if is_adapter else None)


def _gguf(unit: Unit, params: PushParams, version: ModelVersion | None) -> Chosen:
    """The GGUF files of a version, from its job's artifacts or from where they are served."""
    if version is None:
        raise InvalidInput(
            "what: there are no GGUF files, for nothing of this is published yet. Export it first, or push "
            'it as "merged".',
            param="what",
        )
    original = original_of(unit, version)
    _refuse_adapters(original)
    held = [held_file(unit, original, file) for file in chosen_files(version, params.quantizations)]
    job = unit.session.get(Job, original.job_id) if original.job_id is not None else None
    source = original.details.get("source") or {}
    about = {"kind": original.details.get("kind"), "job": source.get("job") or original.job_id}
    about |= {name: source.get(name) for name in ("checkpoint", "step_number", "metrics", "hub")}
    filled = params.model_copy(update={"what": "gguf"})
    return Chosen(filled, Source(about, held), job.base if job is not None else None)


def _refuse_adapters(version: ModelVersion) -> None:
    if version.details.get("published_as") == "adapter":
        raise InvalidInput(
            "what: this model is published as an adapter beside its base's file, and is no whole model: "
            'push "adapter" or "merged", or export its job with publish "merged" first.',
            param="what",
        )


def _card(unit: Unit, about: dict[str, Any]) -> list[Held]:
    """What the training has left for the card, as far as it is there."""
    query = select(Artifact).where(Artifact.job_id == about.get("job"), Artifact.name.in_(CARD_ARTIFACTS))
    root = unit.settings.storage_root
    return [
        Held(root / row.path, f"card/{row.name}", row.bytes, row.sha256)
        for row in unit.session.scalars(query)
        if (root / row.path).is_file()
    ]


def _trained(unit: Unit, about: dict[str, Any]) -> dict[str, Any] | None:
    """How it was trained, for its card: figures only."""
    job = unit.session.get(Job, about.get("job") or "")
    train = next((step for step in job.steps if step.name == "train"), None) if job is not None else None
    if train is None or train.result is None or about.get("checkpoint"):
        return None
    wanted = (
        "hyperparameters",
        "steps",
        "train_loss",
        "eval_loss",
        "final_reward",
        "eval_reward",
        "trained_tokens",
    )
    return {name: train.result[name] for name in wanted if train.result.get(name) is not None}


def _figures(version: ModelVersion | None, params: PushParams) -> list[dict[str, Any]]:
    files = version.files if version is not None else []
    return [
        {"quantization": file.quantization, "bytes": file.bytes, "verification": file.verification}
        for file in files
        if params.quantizations is None or file.quantization in params.quantizations
    ]
