"""Checkpoints: found, listed, and the versions that were exported from them."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.models import Checkpoint, Job, Model, ModelVersion
from db.queries.paging import page_of
from db.states import ENDED_JOB, JobKind


def find_checkpoint(
    session: Session, checkpoint_id: str, *, project_id: str
) -> tuple[Checkpoint, Job] | None:
    """A checkpoint of a project and its job, or None."""
    query = select(Checkpoint, Job).join(Job, Job.id == Checkpoint.job_id)
    row = session.execute(query.where(Checkpoint.id == checkpoint_id, Job.project_id == project_id)).first()
    return (row[0], row[1]) if row is not None else None


def list_checkpoints(
    session: Session, job_id: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[Checkpoint], bool]:
    """One page of a job's checkpoints, newest first, and whether there are more."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return page_of(session, query, Checkpoint.id, after=after, limit=limit)


def exported_version(
    session: Session, checkpoint_id: str, *, project_id: str
) -> tuple[Model, ModelVersion] | None:
    """The newest version that was exported from a checkpoint, with its model."""
    query = (
        select(Model, ModelVersion)
        .join(ModelVersion, ModelVersion.model_id == Model.id)
        .where(ModelVersion.checkpoint_id == checkpoint_id, Model.project_id == project_id)
        .order_by(ModelVersion.created_at.desc())
        .limit(1)
    )
    row = session.execute(query).first()
    return (row[0], row[1]) if row is not None else None


def exported_names(session: Session, checkpoint_ids: list[str], *, project_id: str) -> dict[str, str]:
    """What each checkpoint answers as, if it was exported: `faq-step-20@1`."""
    query = (
        select(ModelVersion.checkpoint_id, Model.name, ModelVersion.number)
        .join(Model, ModelVersion.model_id == Model.id)
        .where(ModelVersion.checkpoint_id.in_(checkpoint_ids), Model.project_id == project_id)
        .order_by(ModelVersion.created_at)
    )
    return {str(row.checkpoint_id): f"{row.name}@{row.number}" for row in session.execute(query)}


def newest_export(session: Session, checkpoint_id: str, *, project_id: str) -> Job | None:
    """The latest job that exports, or exported, a checkpoint."""
    query = select(Job).where(
        Job.project_id == project_id,
        Job.kind == JobKind.EXPORT,
        Job.params["checkpoint"].as_string() == checkpoint_id,
    )
    return session.scalars(query.order_by(Job.id.desc()).limit(1)).first()


def not_exported(session: Session, checkpoint_id: str, *, project_id: str) -> NotFound | None:
    """The error that tells how to export a checkpoint that there is; None when there is none by that id."""
    if find_checkpoint(session, checkpoint_id, project_id=project_id) is None:
        return None
    job = newest_export(session, checkpoint_id, project_id=project_id)
    how = (
        f"Job {job.id} is exporting it: it answers once that has succeeded."
        if job is not None and job.status not in ENDED_JOB
        else f"Export it first: lathe export {checkpoint_id} --watch, or POST /v1/jobs with "
        f'{{"kind": "export", "params": {{"checkpoint": "{checkpoint_id}"}}}}.'
    )
    return NotFound(
        f"{checkpoint_id} is a checkpoint that has not been exported yet. {how}",
        param="model",
        code="checkpoint_not_exported",
    )
