"""What a job must pass that asks a model for each row of a file."""

from api.unit_of_work import Unit
from db.errors import InvalidInput, NotFound, Unavailable
from db.models import File
from db.params.predict import BatchParams, PredictParams
from db.params.values import Params
from db.queries.files import get_file
from serving.backends.configuration import read_backends
from serving.backends.routing import find_destination
from training_data.prompts import RowPrompts, parse_template
from training_data.sql_settings import SQL_FIELDS
from training_data.tables import detect_table

FILE = "input_file"


def check_batch(unit: Unit, params: BatchParams) -> None:
    """Its lines are checked by its first step, which names all that are wrong.

    Raises:
        InvalidInput: there is no such file, or it is not meant for that.
    """
    file = find_file(unit, params.input_file, FILE)
    if file.purpose != "batch":
        raise InvalidInput(
            f"{FILE}: {file.id} was uploaded with the purpose {file.purpose!r}: upload it with the purpose "
            "batch.",
            param=FILE,
            code="wrong_purpose",
        )


def check_predict(unit: Unit, params: PredictParams) -> None:
    """See that a prediction can be made.

    Raises:
        InvalidInput: there is no such file, source, target or model, or the prompt names a column that is
            not there.
    """
    check_databases(unit, params)
    if params.input_file is not None:
        file = find_file(unit, params.input_file, FILE)
        table = detect_table(unit.settings.storage_root / file.path, file.filename, param=FILE)
        if table.columns is not None:
            RowPrompts(params, table.columns)
    for name in ("prompt", "system_prompt"):
        if (text := getattr(params, name)) is not None:
            parse_template(text, param=name)
    _check_model(unit, params.model)


def check_databases(unit: Unit, params: Params) -> None:
    """See that the operator has the SQL sources and targets that a job names.

    Raises:
        InvalidInput: one is none of the project's.
    """
    for param, find in SQL_FIELDS.items():
        name = getattr(params, param, None)
        if name is not None:
            find(unit.settings.sql, name, project_id=unit.project_id, param=param)


def _check_model(unit: Unit, reference: str) -> None:
    try:
        find_destination(unit.session, unit.project_id, read_backends(unit.settings), reference)
    except NotFound as error:
        raise InvalidInput(f"model: {error.message}", param="model", code=error.code) from error
    except Unavailable:
        return  # it is on its way back, and the job waits for it


def find_file(unit: Unit, file_id: str, field: str) -> File:
    """A file that a job is to read, locked against being deleted until the job is there.

    Raises:
        InvalidInput: there is none by that id.
    """
    try:
        return get_file(unit.session, file_id, project_id=unit.project_id, param=field, lock="share")
    except NotFound as error:
        raise InvalidInput(f"{field}: {error.message}", param=field, code="file_not_found") from error
