"""How much a project uses: jobs at once, GPU minutes of the month, bytes stored."""

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.queries.runtime import ATTEMPT_END

# A step of these queues has a GPU to itself, where there is one, or several, whose minutes all count.
OF_THE_MONTH = f"""
    extract(epoch FROM {ATTEMPT_END} - greatest(attempts.started_at, date_trunc('month', clock_timestamp())))
    * greatest(1, (SELECT count(*) FROM attempt_devices WHERE attempt_devices.attempt_id = attempts.id))
"""  # noqa: S608 - put together from constants
GPU_QUEUES = "('train', 'gpu')"
SINCE_MONTH = f"attempts.queue IN {GPU_QUEUES} AND {ATTEMPT_END} > date_trunc('month', clock_timestamp())"
AT_WORK = "{0}.status NOT IN ('succeeded', 'failed', 'cancelled') AND {0}.status <> 'paused'"
USAGE = text(
    f"""
    SELECT
        (SELECT count(*) FROM jobs WHERE project_id = :project AND {AT_WORK.format("jobs")}
         AND id IS DISTINCT FROM CAST(:awaited AS text) AND NOT EXISTS (
             SELECT FROM jobs AS waiting
             WHERE waiting.waits_for_job_id = jobs.id AND {AT_WORK.format("waiting")})) AS jobs,
        (SELECT coalesce(sum({OF_THE_MONTH}), 0) FROM attempts
         WHERE attempts.project_id = :project AND {SINCE_MONTH})
        + (SELECT coalesce(sum(gpu_seconds), 0) FROM past_usage
           WHERE project_id = :project AND month = date_trunc('month', clock_timestamp())) AS gpu_seconds,
        (SELECT coalesce(sum(bytes), 0) FROM files WHERE project_id = :project)
        + (SELECT coalesce(sum(bytes), 0) FROM uploads
           WHERE project_id = :project AND status = 'pending' AND expires_at > clock_timestamp())
        + (SELECT coalesce(sum(usage_bytes), 0) FROM documents WHERE project_id = :project)
        + (SELECT coalesce(sum(bytes), 0) FROM responses WHERE project_id = :project)
        + (SELECT coalesce(sum(bytes), 0) FROM (
               SELECT sha256, artifacts.bytes FROM artifacts JOIN jobs ON jobs.id = artifacts.job_id
               WHERE jobs.project_id = :project
               UNION
               SELECT sha256, model_files.bytes FROM model_files
               JOIN model_versions ON model_versions.id = model_files.version_id
               JOIN models ON models.id = model_versions.model_id WHERE models.project_id = :project
           ) AS made) AS bytes
    """  # noqa: S608 - put together from constants
)
KEEP = text(
    f"""
    INSERT INTO past_usage (project_id, month, gpu_seconds)
    SELECT attempts.project_id, date_trunc('month', clock_timestamp()), sum({OF_THE_MONTH})
    FROM attempts JOIN steps ON steps.id = attempts.step_id
    WHERE steps.job_id = :job_id AND {SINCE_MONTH} GROUP BY attempts.project_id
    ON CONFLICT (project_id, month) DO UPDATE SET gpu_seconds = past_usage.gpu_seconds + excluded.gpu_seconds
    """  # noqa: S608 - put together from constants
)


@dataclass(frozen=True)
class Usage:
    """What a project uses now.

    Args:
        jobs: that have not ended and are not paused. A job and what it waits for count as one.
        gpu_minutes: of this calendar month, those of attempts that run among them.
        bytes: of files, those that are announced among them, documents, and what jobs made; a published model
            that is an artifact too counts once.
    """

    jobs: int
    gpu_minutes: float
    bytes: int


def usage_of(session: Session, project_id: str, *, awaited: str | None = None) -> Usage:
    """Look at what a project uses.

    Args:
        awaited: a job for which one that is yet to be inserted will wait.
    """
    row = session.execute(USAGE, {"project": project_id, "awaited": awaited}).one()
    return Usage(row.jobs, float(row.gpu_seconds) / 60, int(row.bytes))


def keep_usage(session: Session, job_id: str) -> None:
    """Before a job's rows are deleted: add what it used of this month to what is past."""
    session.execute(KEEP, {"job_id": job_id})
