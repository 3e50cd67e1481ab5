"""What a job that is cancelled keeps: the answers that its rows have had until then."""

from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.sources import link_as_file
from worker.answer_files import CANCELLED, Tally, write_files
from worker.answers import ANSWERS, REQUESTS, take_over
from worker.endings import ArtifactFile
from worker.step import StepInput

# As if it had been uploaded for that: such files are found, fetched and given to other jobs by their id.
PURPOSE = "batch_output"
ROWS_A_SECOND = 10_000  # that are written, at the least


def keeps_answers(given: StepInput) -> bool:
    return given.step in ("ask", "write") and "read" in given.results


def write_partial(root: Path, given: StepInput) -> tuple[dict[str, Any], list[ArtifactFile]]:
    """Write the files of what was answered, beside the attempt's others.

    Returns:
        the job's result, and its files.
    """
    folder = given.folder / "partial"
    folder.mkdir(parents=True, exist_ok=True)
    asked = given.folder if given.step == "ask" else given.step_folders["ask"]
    if given.step == "ask" and not (asked / ANSWERS).is_file():  # this attempt has not asked
        take_over(asked)
    tally = write_answers(given, folder, asked / ANSWERS, CANCELLED)
    files = []
    for name in tally.files:
        path = folder / name
        stored, size = str(path.relative_to(root)), path.stat().st_size
        file_id = link_as_file(root, stored)
        files.append(ArtifactFile(name, stored, size, file_sha256(path), PURPOSE, file_id))
    return result_of(given, tally), files


def write_answers(given: StepInput, folder: Path, answers: Path, missing: tuple[str, str]) -> Tally:
    """Write the files of a job's answers into `folder`; see `write_files`."""
    return write_files(
        folder,
        kind=given.kind,
        params=given.params,
        read=given.results["read"],
        requests=given.step_folders["read"] / REQUESTS,
        answers=answers,
        job_id=given.job_id,
        missing=missing,
    )


def result_of(given: StepInput, tally: Tally) -> dict[str, Any]:
    return {
        "model": given.results["read"]["model"],
        "rows": tally.rows,
        "answered": tally.answered,
        "failed": tally.failed,
        "unasked": tally.unasked,
        "tokens": tally.tokens,
    }
