"""Make the files of a job's answers, and offer them."""

from collections.abc import Iterator
from typing import Any

from db.storable import storable
from training_data.sql_settings import SqlTarget
from worker.answer_files import EXPIRED, answer_of
from worker.answers import ANSWERS, JSON, REQUESTS, paired
from worker.partial_answers import PURPOSE, result_of, write_answers
from worker.sql_target import PARAM, write_rows
from worker.step import Step

TELL_EVERY_ROWS = 5_000


def run(step: Step) -> dict[str, Any]:
    """Leave an output file and an error file, as far as there is something for each."""
    tally = write_answers(step.input, step.input.folder, step.input.step_folders["ask"] / ANSWERS, EXPIRED)
    _write_into_target(step)
    for name in tally.files:
        step.artifact(name, purpose=PURPOSE)
    return {**result_of(step.input, tally), "expired": tally.unasked > 0}


def _write_into_target(step: Step) -> None:
    given = step.input.databases.get(PARAM)
    if given is None:
        return
    target = SqlTarget.model_validate(given)
    # A model may say characters that Postgres takes in no text.
    rows = write_rows(target, map(storable, _target_rows(step)))
    step.event(f"{rows} rows were written into {target.name!r}.", rows=rows)


def _target_rows(step: Step) -> Iterator[JSON]:
    given = step.input
    read = given.results["read"]
    requests, answers = given.step_folders["read"] / REQUESTS, given.step_folders["ask"] / ANSWERS
    for number, (request, answer) in enumerate(paired(requests, answers, read["rows"]), start=1):
        if number % TELL_EVERY_ROWS == 0:
            step.progress(number, read["rows"], unit="rows")
        row = {
            "job_id": given.job_id,
            "row_key": request["key"],
            "row": request["row"],
            "model": read["model"],
        }
        if answer is None:
            yield {**row, "error": EXPIRED[1]}
        elif answer["status"] >= 400:
            yield {**row, "error": answer["error"]["message"]}
        else:
            yield {**row, **answer_of(answer["body"])}
