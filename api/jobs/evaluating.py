"""Submitting an evaluation: which model's files are measured on which rows, and that all of them stay."""

from dataclasses import dataclass

from api.jobs import exporting
from api.jobs.asking import find_file
from api.jobs.model_files import chosen_files, held_base, held_file, named_version, original_of, weights_of
from api.unit_of_work import Unit
from db.errors import InvalidInput
from db.models import Job
from db.params.evaluate import EvaluateParams
from db.queries.jobs import get_job
from db.sources import Source
from db.states import JobKind
from training_data.formats import check_file

TEACHES_ANSWERS = "supervised"  # the method whose rows have answers to be compared with
HELD_OUT = ("test", "validation")


@dataclass(frozen=True)
class Chosen:
    """The files, and the base that is measured beside them."""

    source: Source
    base: dict[str, str] | None


def choose(unit: Unit, params: EvaluateParams) -> Chosen:
    """Find what is measured, and on what.

    Raises:
        InvalidInput: there is no such model, file or task, or nothing was held out.
        Conflict: the model's files are no longer there.
    """
    served = named_version(unit, params.model)
    found = weights_of(unit, original_of(unit, served.version))
    if found is None:
        raise InvalidInput(
            "model: it was pulled as it is served, without the weights and the tokenizer that answers are "
            "measured by. Pull it as safetensors.",
            param="model",
        )
    source, owner = found
    is_fine_tune = source.about["kind"] == JobKind.FINE_TUNE
    if params.input_file is not None:
        _check_rows(unit, params.input_file)
    training = (
        get_job(unit.session, source.about["job"], project_id=unit.project_id) if is_fine_tune else None
    )
    split = None if params.input_file is not None or not params.metrics else _split(params, training)
    original = original_of(unit, served.version)
    files = chosen_files(served.version, params.quantizations)
    held = {file.quantization: held_file(unit, original, file) for file in files}
    bases = {
        file.quantization: base for file in files if (base := held_base(unit, original, file)) is not None
    }
    _check_tasks(unit, params)
    source.files += [*held.values(), *bases.values()]
    source.about |= {
        "model": f"{served.model.name}@{served.version.number}",
        "prompted": served.version.prompting is not None,
        "split": split,
        "system_prompt": training.params.get("system_prompt") if training is not None else None,
        "quantized": {name: each.name for name, each in held.items()},
        "bases": {name: each.name for name, each in bases.items()},
        "verification": {file.quantization: file.verification for file in files},
    }
    return Chosen(source, exporting.base_of(unit, owner) if is_fine_tune else None)


def hold_source(unit: Unit, chosen: Chosen, evaluation: Job) -> None:
    evaluation.base = chosen.base
    exporting.hold(unit, chosen.source, evaluation)


def _check_rows(unit: Unit, file_id: str) -> None:
    file = find_file(unit, file_id, "input_file")
    try:
        path = unit.settings.storage_root / file.path
        check_file(path, file.filename, method=TEACHES_ANSWERS, param="input_file")
    except InvalidInput as error:
        raise InvalidInput(error.message, param="input_file", code=error.code) from error


def _split(params: EvaluateParams, training: Job | None) -> str:
    """Which held-out rows of the model's fine-tune it is measured on.

    Raises:
        InvalidInput: there are none of that split, or of any.
    """
    if training is None:
        raise InvalidInput(
            "input_file is missing: a model that is no fine-tune has no rows that were held out for it.",
            param="input_file",
        )
    prepared = next((step.result or {} for step in training.steps if step.name == "prepare"), {})
    rows = prepared.get("rows") or {}
    wanted = HELD_OUT if params.split == "auto" else (params.split,)
    found = next((name for name in wanted if rows.get(name)), None)
    if found is not None:
        return found
    raise InvalidInput(
        f"input_file is missing: the fine-tune has held out no rows for {' or '.join(wanted)}. Upload a file "
        "of questions and answers, or train with train_size below 1.",
        param="input_file",
        code="no_held_out_rows",
    )


def _check_tasks(unit: Unit, params: EvaluateParams) -> None:
    folder = unit.settings.eval_tasks
    if not params.tasks:
        return
    if folder is None:
        raise InvalidInput(
            "tasks: the operator has named no folder of lm-eval's tasks (LATHE_EVAL_TASKS).", param="tasks"
        )
    there = sorted(path.stem for path in folder.glob("*.yaml"))
    missing = [name for name in params.tasks if name not in there]
    if missing:
        raise InvalidInput(
            f"tasks: there is no {', '.join(missing)}. There are: {', '.join(there) or 'none'}.",
            param="tasks",
        )
