"""Submitting an export: what it is made from, under which name, and that nothing takes it away meanwhile."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.unit_of_work import Unit
from db import sources
from db.errors import Conflict, InvalidInput, NotFound
from db.models import Checkpoint, File, Job
from db.params.export import ExportParams
from db.params.publishing import check_publish
from db.params.push import PushParams
from db.queries.checkpoints import find_checkpoint
from db.queries.files import get_file
from db.queries.jobs import get_job
from db.queries.models import find_model
from db.session import allow_silence
from db.sources import Source, source_folder
from db.states import JobKind
from db.storage import job_folder
from training_data.adapter_configs import CONFIG_FILE, adapter_params

MAX_NAME = 63


@dataclass(frozen=True)
class Chosen:
    """A training, and the checkpoint of it that is exported; None: what it came to in the end."""

    job: Job
    checkpoint: Checkpoint | None


def choose(unit: Unit, params: ExportParams | PushParams) -> Chosen:
    """Find what the params name.

    Raises:
        InvalidInput: there is no such checkpoint or job, or the job trains nothing.
    """
    if params.checkpoint is not None:
        found = find_checkpoint(unit.session, params.checkpoint, project_id=unit.project_id)
        if found is None:
            raise InvalidInput(
                f"checkpoint: there is no {params.checkpoint}. It may have made room for a newer one: "
                "GET /v1/jobs/{id}/checkpoints lists those that there are.",
                param="checkpoint",
                code="checkpoint_not_found",
            )
        return Chosen(found[1], found[0])
    try:
        job = get_job(unit.session, params.job or "", project_id=unit.project_id)
    except NotFound as error:
        raise InvalidInput(f"job: {error.message}", param="job", code="job_not_found") from error
    if job.kind not in (JobKind.FINE_TUNE, JobKind.PRETRAIN):
        raise InvalidInput(
            f"job: a job of kind {job.kind} trains nothing that could be exported.", param="job"
        )
    return Chosen(job, None)


def named(unit: Unit, params: ExportParams, chosen: Chosen) -> ExportParams:
    """Fill in the name, and see that no base model of this server would be replaced.

    Raises:
        InvalidInput: it would.
    """
    name = params.name or default_name(chosen)
    model = find_model(unit.session, unit.project_id, name)
    if model is not None and model.recipe is not None:
        raise InvalidInput(
            f"name: {name!r} is a base model of this server, which an export must not replace. Give another.",
            param="name",
        )
    return params.model_copy(update={"name": name})


def default_name(chosen: Chosen) -> str:
    """`faq` for what a job came to, `faq-step-20` for a checkpoint of it."""
    name = str(chosen.job.params["name"])
    if chosen.checkpoint is None:
        return name
    ending = f"-step-{chosen.checkpoint.step_number}"
    return name[: MAX_NAME - len(ending)] + ending


def check_publishing(publish: str, trained: Source) -> None:
    """See that what was trained can be published as it is to be.

    Raises:
        InvalidInput: it can only be merged.
    """
    if publish == "merged":
        return
    config = next((held for held in trained.files if held.name == f"trained/{CONFIG_FILE}"), None)
    own = {"tuning": "full"} if config is None else adapter_params(config.path.parent)
    try:
        check_publish({**own, "publish": publish})
    except ValueError as error:
        raise InvalidInput(f"{error}.", param="publish") from error


def hold_source(unit: Unit, chosen: Chosen, export: Job) -> None:
    """Hold the files for the export, and fix the base that an adapter is merged into.

    Raises:
        Conflict: the files, or the base, are no longer there.
    """
    if chosen.job.kind == JobKind.FINE_TUNE:
        export.base = base_of(unit, chosen.job)
    source = source_of(unit, chosen)
    check_publishing(export.params["publish"], source)
    hold(unit, source, export)


def source_of(unit: Unit, chosen: Chosen) -> Source:
    """The files of what was chosen.

    Raises:
        Conflict: they are no longer there.
    """
    root, text = unit.settings.storage_root, text_of(unit, chosen.job)
    if chosen.checkpoint is not None:
        return sources.of_checkpoint(root, chosen.job, chosen.checkpoint, text)
    return sources.of_job(root, chosen.job, text)


def hold(unit: Unit, source: Source, job: Job, place: Callable[[Path, str], Path] = source_folder) -> None:
    """Hold the files in a folder of a job, for as long as its request is not undone."""
    root = unit.settings.storage_root
    folder = job_folder(root, job.id)
    unit.if_undone(lambda: shutil.rmtree(folder, ignore_errors=True))
    allow_silence(unit.session)  # a file system without hard links has gigabytes copied
    sources.hold(source, place(root, job.id))


def base_of(unit: Unit, training: Job) -> dict[str, Any] | None:
    """The base that an adapter goes with, kept from being deleted.

    Raises:
        Conflict: it has been.
    """
    base = training.base
    for each in filter(None, (base, (base or {}).get("merge_base"))):
        if each["source"] != "storage":
            continue
        # Locked, so that it cannot be deleted until the job that needs it is there.
        find_model(unit.session, unit.project_id, each["name"].partition("@")[0], lock=True)
        if not (unit.settings.storage_root / each["location"]).is_dir():
            raise Conflict(
                f"The base model {each['name']}, on which this was trained, has been deleted.",
                code="base_model_gone",
            )
    return base


def text_of(unit: Unit, training: Job) -> File | None:
    """The text that a model from scratch was given; None where it was given none."""
    file_id = training.params.get("training_file")
    if training.kind != JobKind.PRETRAIN or file_id is None:
        return None
    try:
        return get_file(unit.session, file_id, project_id=unit.project_id, lock="share")
    except NotFound as error:
        raise Conflict(
            f"The text that job {training.id} learnt from ({file_id}) has been deleted, and nothing else can "
            "tell whether the exported file answers as the weights do.",
            code="file_deleted",
        ) from error
