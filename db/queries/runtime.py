"""How long a job has run: all its attempts together, without waiting and pauses, by the database's clock.
And how long a step of it will still run.
"""

from datetime import UTC, datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.models import Step
from db.states import WORKER_LOST

# An attempt whose worker went away is found dead some time later, after a night perhaps: what counts is its
# last sign of life.
ATTEMPT_END = f"""
    CASE WHEN attempts.error ->> 'code' = '{WORKER_LOST}'
         THEN coalesce(attempts.heartbeat_at, attempts.started_at)
         ELSE coalesce(attempts.ended_at, clock_timestamp()) END
"""
ATTEMPT_SECONDS = f"extract(epoch FROM {ATTEMPT_END} - attempts.started_at)"
RUNTIME = text(
    f"SELECT coalesce(sum({ATTEMPT_SECONDS}), 0) "  # noqa: S608 - put together from constants
    "FROM steps JOIN attempts ON attempts.step_id = steps.id WHERE steps.job_id = :job_id"
)


def runtime_seconds(session: Session, job_id: str) -> float:
    return float(session.scalars(RUNTIME, {"job_id": job_id}).one())


def seconds_left(step: Step) -> float | None:
    """How long a running step will take, if it has said so."""
    eta: float | None = (step.progress or {}).get("eta_seconds")
    if eta is not None and step.progressed_at is not None:
        # The estimate is as old as the progress; the time since then has been spent.
        eta = max(0.0, round(eta - (datetime.now(UTC) - step.progressed_at).total_seconds(), 1))
    return eta
