"""Jobs that ended, and what is left of them: their rows and folder, their artifacts, their checkpoints."""

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.orm import Session

from db.models import Artifact, Checkpoint, Job
from db.queries.jobs import add_event
from db.queries.retention import (
    NOTE,
    Place,
    delete_job_rows,
    ended_jobs,
    is_held,
    keeps_weights,
    lock_ended,
)
from db.sources import source_folder, start_folder
from db.states import JobStatus, how_ended
from db.storage import attempt_folder, job_folder
from retention.rule import Batch, Expired, House, Removal, Rule, freed_bytes

# What nobody asked for goes a day after its job has succeeded.
WORKING_FILES_DAYS = 1.0


class OfEndedJobs:
    """A rule about jobs that ended so many days ago. `setting` names the days; None: for ever."""

    kind = ""
    setting = ""

    def find(self, session: Session, house: House, cursor: Place | None, limit: int) -> Batch:
        days = self.days(house)
        if days is None:
            return Batch()
        jobs = ended_jobs(session, days, self.which(), after=cursor, limit=limit)
        items = [item for job in jobs if (item := self.look(session, house, job)) is not None]
        seen = (jobs[-1].finished_at, jobs[-1].id) if jobs else cursor
        return Batch(items, seen, more=len(jobs) == limit)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        days = self.days(house)
        job = lock_ended(session, item.id, days) if days is not None else None
        return Removal.KEPT if job is None else self.remove_of(session, house, job)

    def days(self, house: House) -> float | None:
        days: float | None = getattr(house.settings, self.setting)
        return days

    def why(self, house: House) -> str:
        return f"kept for {self.days(house):g} days"

    def which(self) -> ColumnElement[bool]:
        raise TypeError("a rule says which jobs it is about")

    def look(self, session: Session, house: House, job: Job) -> Expired | None:
        raise TypeError("a rule says what it finds")

    def remove_of(self, session: Session, house: House, job: Job) -> Removal:
        raise TypeError("a rule says how it removes")


class WholeJobs(OfEndedJobs):
    """The job with its events, metrics, artifacts and folder. The models that it published stay."""

    kind = "job"
    setting = "keep_jobs_days"

    def which(self) -> ColumnElement[bool]:
        return ~keeps_weights()

    def look(self, session: Session, house: House, job: Job) -> Expired | None:
        size = freed_bytes(job_folder(house.root, job.id))
        return Expired(
            self.kind, job.id, f"{job.kind} that {how_ended(job.status)}, {self.why(house)}", size, 1
        )

    def remove_of(self, session: Session, house: House, job: Job) -> Removal:
        if is_held(session, job):
            return Removal.KEPT
        delete_job_rows(session, job)
        folder = job_folder(house.root, job.id)
        if folder.exists():
            house.discard(folder)
        return Removal.DONE


class Artifacts(OfEndedJobs):
    """The files that a job offers. Only of one that succeeded: the others may be tried again from them."""

    kind = "artifacts"
    setting = "keep_artifacts_days"

    def which(self) -> ColumnElement[bool]:
        return (Job.status == JobStatus.SUCCEEDED) & exists().where(Artifact.job_id == Job.id)

    def look(self, session: Session, house: House, job: Job) -> Expired | None:
        paths = _paths(session, house, job, Artifact)
        size = sum(map(freed_bytes, paths))
        return Expired(self.kind, job.id, self.why(house), size, len(paths))

    def remove_of(self, session: Session, house: House, job: Job) -> Removal:
        for path in _paths(session, house, job, Artifact):
            if path.exists():
                house.discard(path)
        session.execute(delete(Artifact).where(Artifact.job_id == job.id))
        note(session, job, f"Its artifacts were removed: they are {self.why(house)}.", self.kind)
        return Removal.DONE


class Checkpoints(OfEndedJobs):
    """The checkpoints of an ended job; one that failed would be tried again from the beginning."""

    kind = "checkpoints"
    setting = "keep_checkpoints_days"

    def which(self) -> ColumnElement[bool]:
        return exists().where(Checkpoint.job_id == Job.id)

    def look(self, session: Session, house: House, job: Job) -> Expired | None:
        paths = _paths(session, house, job, Checkpoint)
        return Expired(self.kind, job.id, self.why(house), sum(map(freed_bytes, paths)), len(paths))

    def remove_of(self, session: Session, house: House, job: Job) -> Removal:
        for path in _paths(session, house, job, Checkpoint):
            if path.exists():
                house.discard(path)
        session.execute(delete(Checkpoint).where(Checkpoint.job_id == job.id))
        again = "" if job.status == JobStatus.SUCCEEDED else " A retry trains from the beginning."
        note(session, job, f"Its checkpoints were removed: they are {self.why(house)}.{again}", self.kind)
        return Removal.DONE


class WorkingFiles(OfEndedJobs):
    """What the steps of a job that succeeded needed on the way: merged weights, 16-bit files, its source."""

    kind = "working files"

    def days(self, house: House) -> float | None:
        return WORKING_FILES_DAYS

    def which(self) -> ColumnElement[bool]:
        return Job.status == JobStatus.SUCCEEDED

    def look(self, session: Session, house: House, job: Job) -> Expired | None:
        paths = list(_working_files(session, house, job))
        if not paths:
            return None
        return Expired(self.kind, job.id, "no step needs them any more", sum(map(freed_bytes, paths)))

    def remove_of(self, session: Session, house: House, job: Job) -> Removal:
        for path in _working_files(session, house, job):
            house.discard(path)
        return Removal.DONE


def note(session: Session, job: Job, message: str, kind: str) -> None:
    """Tell in a job's events what has aged out of it."""
    add_event(session, job.id, message, data={NOTE: kind})


def _paths(session: Session, house: House, job: Job, table: type[Artifact | Checkpoint]) -> list[Path]:
    return [house.root / path for path in session.scalars(select(table.path).where(table.job_id == job.id))]


def _working_files(session: Session, house: House, job: Job) -> Iterable[Path]:
    held = (source_folder(house.root, job.id), start_folder(house.root, job.id))
    yield from (folder for folder in held if folder.is_dir())
    export = next((step for step in job.steps if step.name == "export"), None)
    if export is None or export.succeeded_attempt is None:
        return
    folder = attempt_folder(house.root, job.id, export.name, export.succeeded_attempt)
    if (folder / "merged").is_dir():
        yield folder / "merged"
    offered = set(_paths(session, house, job, Artifact))
    yield from (path for path in folder.glob("*.gguf") if path not in offered)


JOBS: tuple[Rule, ...] = (WholeJobs(), Artifacts(), Checkpoints(), WorkingFiles())
