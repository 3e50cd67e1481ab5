"""Pages of what the attempts' processes printed, straight from their log files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from api.jobs.schemas import LogLine
from api.unit_of_work import Unit
from db.errors import InvalidInput
from db.models import Job
from db.storage import attempt_log

LINE_BYTES = 16 * 1024
CURSOR = re.compile(r"(?P<step>[a-z_]+)-(?P<attempt>\d{1,9})-(?P<end>\d{1,15})")


@dataclass(frozen=True)
class Place:
    """A log file, and where in it to go on."""

    step: str
    attempt: int
    offset: int = 0


def log_page(
    unit: Unit, job: Job, *, step: str | None, attempt: int | None, after: str | None, limit: int
) -> tuple[list[LogLine], bool]:
    """One page of log lines, in the order of steps and attempts, and whether there are more.

    A line's id is its step, its attempt and where it ends in the file.

    Raises:
        InvalidInput: the job has no such step, or `after` is no line's id.
    """
    names = [row.name for row in job.steps]
    if step is not None and step not in names:
        raise InvalidInput(f"step must be one of {', '.join(names)}.", param="step")
    places = [
        Place(row.name, number)
        for row in job.steps
        for number in range(1, row.attempt + 1)
        if (step is None or row.name == step) and (attempt is None or number == attempt)
    ]
    lines: list[LogLine] = []
    for line in _lines(unit.settings.storage_root, job.id, _from(places, after)):
        if len(lines) == limit:
            return lines, True
        lines.append(line)
    return lines, False


def _from(places: list[Place], after: str | None) -> list[Place]:
    if after is None:
        return places
    match = CURSOR.fullmatch(after)
    if match is None:
        raise InvalidInput("after must be the id of a line, as an earlier page gave it.", param="after")
    for index, place in enumerate(places):
        if (place.step, place.attempt) == (match["step"], int(match["attempt"])):
            return [Place(place.step, place.attempt, int(match["end"])), *places[index + 1 :]]
    raise InvalidInput("after names a line that is not among those asked for.", param="after")


def _lines(root: Path, job_id: str, places: list[Place]) -> Iterator[LogLine]:
    for place in places:
        path = attempt_log(root, job_id, place.step, place.attempt)
        if not path.is_file():
            continue  # it printed nothing, or its log has aged out
        with path.open("rb") as file:
            file.seek(place.offset)
            while line := file.readline(LINE_BYTES):
                yield LogLine(
                    id=f"{place.step}-{place.attempt}-{file.tell():012d}",
                    step=place.step,
                    attempt=place.attempt,
                    line=_text(line),
                )


def _text(line: bytes) -> str:
    """A line as a terminal would leave it: a progress bar is its last state."""
    return line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2]
