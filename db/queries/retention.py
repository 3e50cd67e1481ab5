"""Jobs that ended long ago, and what keeps one from being removed.

Candidates are walked in the order in which they ended, by an index: however many there are, one batch costs
as little as another.
"""

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, exists, func, select, tuple_, update
from sqlalchemy.orm import Session

from db.models import Event, Job, ModelVersion
from db.queries.usage import keep_usage
from db.states import ENDED_JOB

Place = tuple[datetime, str]  # when a job ended, and its id
# In the data of an event that tells of retention; such events stay with their job.
NOTE = "retention"


def ended_before(days: float) -> ColumnElement[bool]:
    # Not clock_timestamp(): it changes within a statement, so no index can be searched for it.
    return and_(
        Job.finished_at.is_not(None), Job.finished_at <= func.statement_timestamp() - timedelta(days=days)
    )


def ended_jobs(
    session: Session, days: float, which: ColumnElement[bool], *, after: Place | None, limit: int
) -> list[Job]:
    """Jobs that ended at least `days` ago, those that ended first coming first."""
    query = select(Job).where(ended_before(days), which).order_by(Job.finished_at, Job.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(Job.finished_at, Job.id) > after)
    return list(session.scalars(query))


def lock_ended(session: Session, job_id: str, days: float) -> Job | None:
    """Lock a job if it still is one that ended so long ago, and nobody else works on it."""
    query = select(Job).where(Job.id == job_id, ended_before(days), Job.status.in_(ENDED_JOB))
    query = query.with_for_update(key_share=True, skip_locked=True)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def keeps_weights() -> ColumnElement[bool]:
    """That a model which others can be made from has its weights in the job's folder."""
    own = ModelVersion.weights.startswith(func.concat("jobs/", Job.id, "/"))
    return exists().where(ModelVersion.job_id == Job.id, own)


def is_held(session: Session, job: Job) -> bool:
    """Whether a model keeps weights in the folder of `job`."""
    return session.scalars(select(keeps_weights()).where(Job.id == job.id)).one()


def delete_job_rows(session: Session, job: Job) -> None:
    """Delete an ended job that nothing holds, with all rows that are its own. Its folder is the caller's."""
    keep_usage(session, job.id)
    session.execute(update(Job).where(Job.waits_for_job_id == job.id).values(waits_for_job_id=None))
    session.delete(job)
    session.flush()


def is_note() -> ColumnElement[bool]:
    return func.coalesce(Event.data.has_key(NOTE), False)
