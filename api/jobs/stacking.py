"""A fine-tune that goes on from an earlier one: what it starts from, kept from being taken away meanwhile."""

import re
from dataclasses import dataclass
from typing import Any

from api.jobs import exporting, model_files
from api.unit_of_work import Unit
from db.errors import InvalidInput
from db.models import Job
from db.params.export import ExportParams
from db.params.fine_tune import FineTuneParams
from db.params.values import CHECKPOINT_ID
from db.queries.base_models import resolve_base_model
from db.sources import Source, start_folder
from db.states import JobKind
from training_data.adapter_configs import CONFIG_FILE, adapter_params

JOB_ID = re.compile(r"job-[0-9a-z]{1,64}")
FIELD = "start_from"


@dataclass(frozen=True)
class Start:
    """The weights that a training begins with, and the base that they go with."""

    source: Source
    base: dict[str, Any]


def choose(unit: Unit, params: FineTuneParams) -> Start:
    """Find what `start_from` names, and see that the training can go on from it.

    Raises:
        InvalidInput: there is nothing by that name, it goes with another base, or it is not of the form that
            is to be trained; `param` names the field.
        Conflict: its files are no longer there.
    """
    source, training = _source(unit, params.start_from or "")
    if training.kind not in (JobKind.FINE_TUNE, JobKind.EXPORT) or training.base is None:
        raise InvalidInput(
            f"start_from: {params.start_from!r} is no fine-tune: to start from a model that was made or "
            "pulled whole, name it as base_model.",
            param=FIELD,
        )
    source.files = [held for held in source.files if held.name.startswith("trained/")]
    _check_base(unit, params, training.base)
    config = next((held for held in source.files if held.name == f"trained/{CONFIG_FILE}"), None)
    if config is not None:
        _check_adapter(params, adapter_params(config.path.parent))
        exporting.check_publishing(params.publish, source)
    elif params.tuning != "full":
        raise InvalidInput(
            f"start_from: all weights of {params.start_from} were trained, so that there is no adapter to go "
            'on with: set tuning to "full", or name the model as base_model for an adapter of its own.',
            param=FIELD,
        )
    return Start(source, _pinned(exporting.base_of(unit, training) or training.base, training))


def hold(unit: Unit, start: Start, job: Job) -> None:
    """Hold the files for the job, and fix its base to the one that they go with."""
    job.base = start.base
    exporting.hold(unit, start.source, job, start_folder)


def _source(unit: Unit, reference: str) -> tuple[Source, Job]:
    try:
        if CHECKPOINT_ID.fullmatch(reference):
            chosen = exporting.choose(unit, ExportParams(checkpoint=reference))
        elif JOB_ID.fullmatch(reference):
            chosen = exporting.choose(unit, ExportParams(job=reference))
        else:
            version = model_files.original_of(unit, model_files.named_version(unit, reference).version)
            found = model_files.weights_of(unit, version)
            if found is None:
                raise InvalidInput(f"{reference} was pulled as it is served, and has no weights besides.")
            return found
    except InvalidInput as error:
        message = re.sub(r"^(model|job|checkpoint): ", "", error.message)
        raise InvalidInput(f"start_from: {message}", param=FIELD, code=error.code) from error
    return exporting.source_of(unit, chosen), chosen.job


def _check_base(unit: Unit, params: FineTuneParams, base: dict[str, Any]) -> None:
    found = resolve_base_model(unit.session, unit.settings, unit.project_id, params.base_model)
    same = (found.source, found.location) == (base["source"], base["location"])
    if not same or found.revision not in (None, base["revision"]):
        raise InvalidInput(
            f"base_model: {params.start_from!r} was trained on {base['name']}, and goes with no other. Give "
            f"base_model {base['name']!r}.",
            param="base_model",
        )


def _check_adapter(params: FineTuneParams, own: dict[str, Any]) -> None:
    """See that no other adapter is asked for than the one that is there."""
    if params.tuning == "full":
        return  # it is merged into the base before anything is trained
    for name, value in own.items():
        given = getattr(params, name)
        if given in ("auto", type(params).model_fields[name].default):
            continue
        if (sorted(given) if isinstance(given, list) else given) != value:
            raise InvalidInput(
                f"{name}: the adapter of {params.start_from} has {value}, and training goes on with it as it "
                f"is. Leave {name} out, or set tuning to 'full', which merges it into the base.",
                param=name,
            )


def _pinned(base: dict[str, Any], training: Job) -> dict[str, Any]:
    """The base at the commit that the earlier training took."""
    prepare = next((step.result or {} for step in training.steps if step.name == "prepare"), {})
    return {**base, "revision": prepare.get("base_revision", base["revision"])}
