"""What happens to jobs that exist: retry and delete. Cancelling is the workers' too, so it is in `db/`."""

import shutil

from sqlalchemy.orm import Session

from api.jobs.schemas import RetryRequest
from api.quotas import admit_job
from api.unit_of_work import Unit
from db.errors import Conflict, InvalidInput, NotFound
from db.kinds import files_of
from db.models import Job
from db.queries.files import get_file
from db.queries.jobs import add_event, get_job, lock_steps, resume_job
from db.queries.retention import delete_job_rows, is_held
from db.queries.runtime import runtime_seconds
from db.queries.states import move
from db.states import ENDED_JOB, JobStatus, StepStatus
from db.storage import job_folder


def resume(unit: Unit, job_id: str) -> Job:
    """Let a paused job go on, if the project may have another at work; see `resume_job`."""
    job = get_job(unit.session, job_id, project_id=unit.project_id, lock=True)
    if job.status == JobStatus.PAUSED:
        admit_job(unit)
    return resume_job(unit.session, job_id, project_id=unit.project_id)


def retry_job(unit: Unit, job_id: str, changes: RetryRequest) -> Job:
    """Queue a failed or cancelled job again, from its first step that has not succeeded.

    Raises:
        NotFound: there is none by that id.
        InvalidInput: it has run for as long as it may.
        Conflict: it has not ended, has succeeded, waits for a job that made nothing, or its file is gone.
    """
    session = unit.session
    job = get_job(session, job_id, project_id=unit.project_id, lock=True)
    if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
        raise Conflict(
            f"The job's status is {job.status}: only a failed or cancelled job can be tried again.",
            code="job_not_ended",
        )
    _check_awaited(session, job)
    _check_files(session, job)
    left = [step for step in lock_steps(session, job) if step.status != StepStatus.SUCCEEDED]
    if not left:
        raise Conflict("Every step of the job has succeeded: there is nothing to do again.", code="job_ended")
    if "max_runtime_seconds" in changes.model_fields_set:
        job.max_runtime_seconds = changes.max_runtime_seconds
    _check_runtime(session, job)
    admit_job(unit)
    move(session, job, JobStatus.QUEUED)
    job.error = job.result = None  # a cancelled one may have had the answers until then
    for position, step in enumerate(left):
        step.failures, step.not_before, step.progress = 0, None, None
        wanted = StepStatus.QUEUED if position == 0 else StepStatus.PENDING
        if step.status != wanted:
            move(session, step, wanted)
    add_event(session, job.id, f"Tried again, from {left[0].name}.")
    return job


def _check_awaited(session: Session, job: Job) -> None:
    awaited = session.get(Job, job.waits_for_job_id) if job.waits_for_job_id else None
    if awaited is not None and awaited.status != JobStatus.SUCCEEDED:
        raise Conflict(
            f"The job waited for {awaited.id}, which is {awaited.status}: submit it anew.",
            code="awaited_job_ended",
        )


def _check_runtime(session: Session, job: Job) -> None:
    used, limit = runtime_seconds(session, job.id), job.max_runtime_seconds
    if limit is not None and used >= limit:
        raise InvalidInput(
            f"max_runtime_seconds: the job has run for {used:.0f} s of the {limit} s that it may. "
            "Give it more, or null for no limit.",
            param="max_runtime_seconds",
            code="max_runtime_exceeded",
        )


def _check_files(session: Session, job: Job) -> None:
    for file_id in files_of(job.params).values():
        try:
            get_file(session, file_id, project_id=job.project_id, lock="share")
        except NotFound:
            raise Conflict(
                f"The job needs the file {file_id}, which has been deleted: upload it again, and submit the "
                "job anew.",
                code="file_deleted",
            ) from None


def delete_job(unit: Unit, job_id: str) -> None:
    """Remove an ended job with its folder; the models it published stay.

    Raises:
        NotFound: there is none by that id.
        Conflict: it has not ended, or a model keeps the weights that it made.
    """
    session = unit.session
    job = get_job(session, job_id, project_id=unit.project_id, lock=True)
    if job.status not in ENDED_JOB:
        raise Conflict(f"The job is {job.status}: cancel it first.", code="job_not_ended")
    if is_held(session, job):
        raise Conflict(
            "A model that others can be made from keeps its weights in this job: delete the model first.",
            code="job_in_use",
        )
    delete_job_rows(session, job)
    folder = job_folder(unit.settings.storage_root, job.id)
    unit.after_commit(lambda: shutil.rmtree(folder) if folder.exists() else None)
