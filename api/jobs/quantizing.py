"""Submitting what has to do with bases that are stored quantised: their making, and training on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.jobs import exporting
from api.jobs.asking import find_file
from api.unit_of_work import Unit
from db.errors import InvalidInput
from db.models import Job
from db.params.fine_tune import FineTuneParams
from db.params.quantize import QuantizeParams
from db.queries.base_models import BaseModel, resolve_base_model
from db.sources import Held, Source
from db.states import JobKind
from training_data.formats import check_file
from training_data.json_files import read_json
from training_data.stored_quantization import check_fine_tune, check_merge_base, stored_quantization

ROWS = "rows/"


@dataclass(frozen=True)
class Calibrated:
    """What a model is quantised from.

    Args:
        source: what it has learnt from, which is held for the job; None: a file, or Python's help.
    """

    base: BaseModel
    source: Source | None


def merge_base_of(unit: Unit, params: FineTuneParams, base: BaseModel) -> str | None:
    """The 16-bit model that a fine-tune's adapter is merged into, where that is not its base.

    What lies here is looked at now; a hub's, by the job's first step.

    Raises:
        InvalidInput: the base cannot be trained on as asked; `param` names the field.
    """
    config = _config(unit, base)
    stored = stored_quantization(config) if config is not None else None
    reference = params.merge_base or (base.made_from if stored is not None else None)
    if config is not None:
        check_fine_tune(params.model_copy(update={"merge_base": reference}), base.name, stored)
    if reference is None:
        return None
    merged = resolve_base_model(unit.session, unit.settings, unit.project_id, reference, param="merge_base")
    if merged.waits_for_job_id is not None:
        raise InvalidInput(
            f"merge_base: {reference!r} has not been made yet, so {base.name} was not made from it.",
            param="merge_base",
        )
    merged_config = _config(unit, merged)
    if config is not None and merged_config is not None:
        check_merge_base(config, merged_config, name=base.name, merge_name=merged.name)
    return merged.name


def choose(unit: Unit, params: QuantizeParams) -> Calibrated:
    """Find what is quantised, and what it is calibrated on.

    Raises:
        InvalidInput: there is no such model or file, it is quantised already, or nothing is known that it has
            learnt from.
    """
    base = resolve_base_model(unit.session, unit.settings, unit.project_id, params.base_model)
    config = _config(unit, base)
    if config is not None and "quantization_config" in config:
        raise InvalidInput(
            f"base_model: {base.name!r} is quantised already. Name the 16-bit model that it was made from.",
            param="base_model",
        )
    if params.input_file is not None:
        file = find_file(unit, params.input_file, "input_file")
        path = unit.settings.storage_root / file.path
        check_file(path, file.filename, method=None, param="input_file")
        return Calibrated(base, None)
    return Calibrated(base, _learnt_from(unit, base))


def hold_source(unit: Unit, chosen: Calibrated, job: Job) -> None:
    if chosen.source is not None:
        exporting.hold(unit, chosen.source, job)


def _learnt_from(unit: Unit, base: BaseModel) -> Source | None:
    """The rows, or the text, of a model that was trained here; None: the topics of Python's help.

    Raises:
        InvalidInput: it was not.
    """
    made_by = unit.session.get(Job, base.waits_for_job_id or base.made_by or "")
    if made_by is not None and made_by.kind == JobKind.PRETRAIN:
        return _text_of(unit, made_by)
    if made_by is not None and made_by.kind == JobKind.FINE_TUNE:
        source = exporting.source_of(unit, exporting.Chosen(made_by, None))
        source.files = [held for held in source.files if held.name.startswith(ROWS)]
        return source
    raise InvalidInput(
        f"input_file is missing: {base.name} was not trained here, and nothing is known of what it reads. "
        "Upload rows or a text of the kind that it is for.",
        param="input_file",
    )


def _text_of(unit: Unit, pretraining: Job) -> Source | None:
    text = exporting.text_of(unit, pretraining)
    if text is None:
        return None
    held = Held(unit.settings.storage_root / text.path, "text", text.bytes, text.sha256)
    return Source({"job": pretraining.id}, [held])


def _config(unit: Unit, base: BaseModel) -> dict[str, Any] | None:
    """A base's config.json; None where it is a hub's, or has still to be made."""
    if base.location is None or base.source == "hub":
        return None
    # An absolute location, which is an operator's folder, stays as it is.
    return read_json(Path(unit.settings.storage_root) / base.location / "config.json")
