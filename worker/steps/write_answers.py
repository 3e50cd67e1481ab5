"""Make the files of a job's answers, and offer them."""

from typing import Any

from worker.answer_files import EXPIRED
from worker.answers import ANSWERS
from worker.partial_answers import PURPOSE, result_of, write_answers
from worker.step import Step


def run(step: Step) -> dict[str, Any]:
    """Leave an output file and an error file, as far as there is something for each."""
    tally = write_answers(step.input, step.input.folder, step.input.step_folders["ask"] / ANSWERS, EXPIRED)
    for name in tally.files:
        step.artifact(name, purpose=PURPOSE)
    return {**result_of(step.input, tally), "expired": tally.unasked > 0}
