"""What finished jobs took: the figures that estimates are learnt from, of all projects together."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.queries.runtime import ATTEMPT_SECONDS
from db.states import JobKind

JOBS_LEARNT_FROM = 20
FINISHED = text(
    f"""
    WITH recent AS (
        SELECT id FROM jobs WHERE kind = :kind AND status = 'succeeded' AND params ->> 'cluster' IS NULL
        ORDER BY id DESC LIMIT {JOBS_LEARNT_FROM}
    )
    SELECT recent.id, steps.name, held.device, held.devices,
           CASE WHEN steps.name IN ('prepare', 'train', 'quantize') THEN steps.result END AS result,
           {ATTEMPT_SECONDS} AS seconds, attempts.resumed_from
    FROM recent JOIN steps ON steps.job_id = recent.id
    JOIN attempts ON attempts.step_id = steps.id AND attempts.number = steps.succeeded_attempt
    LEFT JOIN LATERAL (
        SELECT string_agg(DISTINCT devices.name, ', ') AS device, count(*) AS devices
        FROM attempt_devices JOIN devices ON devices.id = attempt_devices.device_id
        WHERE attempt_devices.attempt_id = attempts.id
    ) AS held ON true
    ORDER BY recent.id DESC, steps.position
    """  # noqa: S608 - put together from constants
)


def finished_fine_tunes(session: Session) -> list[dict[str, Any]]:
    """The latest that have succeeded, newest first: `device` and `devices` that trained, `results` of
    their steps, and `seconds`.

    One that went on from a checkpoint is left out, as what its last attempt took is not the whole; so is one
    that ran out of memory and was tried with less, and what several machines trained together.
    """
    return [job for job in _finished(session, JobKind.FINE_TUNE, "train") if _is_whole(job)]


def finished_quantizations(session: Session) -> list[dict[str, Any]]:
    """The latest jobs of the kind `quantize`, told likewise."""
    return list(_finished(session, JobKind.QUANTIZE, "quantize"))


def _finished(session: Session, kind: JobKind, main: str) -> Iterable[dict[str, Any]]:
    """Args:
    main: the step whose devices count.
    """
    jobs: dict[str, dict[str, Any]] = {}
    for row in session.execute(FINISHED, {"kind": kind}):
        job = jobs.setdefault(row.id, {"device": None, "devices": 0, "results": {}, "seconds": {}})
        job["seconds"][row.name] = float(row.seconds)
        if row.result is not None:
            job["results"][row.name] = row.result
        if row.name == main:
            held = {"device": row.device, "devices": row.devices}
            job |= {**held, "resumed": row.resumed_from is not None}
    return jobs.values()


def _is_whole(job: dict[str, Any]) -> bool:
    train = job["results"].get("train", {})
    disturbed = job.get("resumed", True) or train.get("adjustments")
    return "prepare" in job["results"] and not disturbed and bool(train.get("tokens_per_second"))
