"""Read the rows of a prediction, and make each one's request, before the first one is asked.

The rows are kept as they were read: whatever becomes of their source, a later attempt asks the same.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from db.errors import InvalidInput, InvalidLines
from db.params.predict import PredictParams
from db.storable import refuse_deep
from training_data.prompts import RowPrompts
from training_data.sql_rows import open_rows
from training_data.sql_settings import SqlSource, SqlTarget
from training_data.tables import Record, Table, detect_table, read_table
from worker.answers import REQUESTS
from worker.sql_target import PARAM as TARGET_PARAM
from worker.sql_target import check_target
from worker.step import Step

PARAM, SOURCE_PARAM = "input_file", "input_source"
PROBLEMS_TOLD = 100
MAX_KEY_CHARACTERS = 512  # each is held until the last row is read, and may be told in an error
TELL_EVERY_ROWS = 5_000


def run(step: Step) -> dict[str, Any]:
    """Leave `requests.jsonl`.

    Raises:
        InvalidInput: the rows lack a column, or are none.
        InvalidLines: some rows cannot be asked; each of the first hundred is named.
    """
    params = PredictParams.model_validate(step.input.params)
    _check_target(step)
    with ExitStack() as stack:
        columns, records = _from_source(step, stack) or _from_file(step, params)
        return _write(step, params, columns, records)


def _write(
    step: Step, params: PredictParams, columns: Sequence[str], records: Iterable[Record]
) -> dict[str, Any]:
    requests = _Requests(RowPrompts(params, columns))
    sha256 = hashlib.sha256()
    with (step.input.folder / REQUESTS).open("wb") as out:
        for record in records:
            request = requests.of(record)
            if len(requests.problems) >= PROBLEMS_TOLD:
                break
            if request is not None:
                line = json.dumps(request, default=str).encode() + b"\n"
                sha256.update(line)
                out.write(line)
            if requests.rows % TELL_EVERY_ROWS == 0:
                step.event(f"Read {requests.rows:,} rows.", rows=requests.rows)
    if requests.problems:
        raise InvalidLines(
            requests.problems, more=len(requests.problems) >= PROBLEMS_TOLD, param=_param(params)
        )
    if requests.rows == 0:
        raise InvalidInput("There are no rows to ask for.", param=_param(params), code="no_rows")
    step.event(f"{requests.rows} rows for {params.model!r}.", rows=requests.rows)
    return {
        "rows": requests.rows,
        "model": params.model,
        "endpoint": "/v1/chat/completions",
        "columns": list(columns),
        "sha256": sha256.hexdigest(),
    }


def _param(params: PredictParams) -> str:
    return PARAM if params.input_file is not None else SOURCE_PARAM


def _check_target(step: Step) -> None:
    target = step.input.databases.get(TARGET_PARAM)
    if target is not None:
        check_target(SqlTarget.model_validate(target))


def _from_source(step: Step, stack: ExitStack) -> tuple[Sequence[str], Iterable[Record]] | None:
    given = step.input.databases.get(SOURCE_PARAM)
    if given is None:
        return None
    source = SqlSource.model_validate(given)
    opened = stack.enter_context(open_rows(source, param=SOURCE_PARAM))
    return opened.columns, (Record(number, row) for number, row in enumerate(opened.rows, start=1))


def _from_file(step: Step, params: PredictParams) -> tuple[Sequence[str], Iterable[Record]]:
    file = step.input.files[params.input_file or ""]
    table: Table = detect_table(file.path, file.filename, param=PARAM, whole=True)
    if table.is_guessed:
        step.event(
            f"{file.filename} is not UTF-8 and was read as Windows-1252: save it as UTF-8 if letters come "
            "out wrong.",
            level="warn",
            encoding=table.encoding,
        )
    return table.columns or (), read_table(table, param=PARAM)


@dataclass
class _Requests:
    """What is known after the rows so far."""

    prompts: RowPrompts
    rows: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    _lines_by_key: dict[str, int] = field(default_factory=dict)

    def of(self, record: Record) -> dict[str, Any] | None:
        """A row's request, or None for one that cannot be asked."""
        self.rows += 1
        try:
            refuse_deep(record.values, "row")
            key = self.prompts.key(self.rows, record.values)
            if len(key) > MAX_KEY_CHARACTERS:
                raise InvalidInput(
                    f"the key has {len(key)} characters; {MAX_KEY_CHARACTERS} are taken.",
                    param="key_column",
                    code="key_too_long",
                )
            first = self._lines_by_key.setdefault(key, record.line)
            if first != record.line:
                raise InvalidInput(
                    f"the key {key!r} is line {first}'s already.", param="key_column", code="duplicate_key"
                )
            body = self.prompts.body(record.values)
        except InvalidInput as error:
            said = {"line": record.line, "code": error.code, "message": error.message, "param": error.param}
            self.problems.append(said)
            return None
        return {"row": self.rows, "key": key, "input": record.values, "body": body}
