"""Checkpoints that are asked by their name in OpenAI's form: the first question has one exported."""

import math

from sqlalchemy import text

from api.caller import CALLER, known
from api.chat.configured import why_not_there
from api.chat.service import target_of
from api.jobs.submission import read_request, submit
from api.unit_of_work import Services, Unit
from db.errors import LatheError, NotFound, Unavailable
from db.keys import Scope
from db.models import Checkpoint, Job
from db.queries.aliases import is_alias, named_checkpoint
from db.queries.checkpoints import find_checkpoint, newest_export
from db.queries.outlook import Reckoning, outlook
from db.states import ENDED_JOB, JobKind, JobStatus
from serving.backends.target import Target

# OpenAI's clients heed no longer Retry-After.
RETRY_AFTER_SECONDS, RETRY_AFTER_MOST_SECONDS = 15, 60
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended(:id, 0))")


async def find_target(services: Services, reference: str) -> Target:
    """Find who answers for `reference`; a checkpoint that none has yet is exported meanwhile.

    Raises:
        NotFound: there is no such model, or it has not been made yet.
        Unavailable: it has made room for a step on its device, is a checkpoint that is being exported, or the
            configured model that is being fetched.
    """
    name = ("chat", known(CALLER.get()).project_id, reference)
    try:
        return await services.destinations.of(
            name,
            lambda: services.run_reading(lambda unit: target_of(unit, services.backends, reference)),
        )
    except NotFound as error:
        found = error
    is_checkpoint = found.code == "checkpoint_not_exported" and is_alias(reference)
    explain = _export if is_checkpoint else why_not_there
    raise await services.run_in_transaction(lambda unit: explain(unit, reference, found)) from found


def _export(unit: Unit, reference: str, not_exported: NotFound) -> LatheError:
    """Have the checkpoint exported, unless that was tried already, and say when to ask again."""
    checkpoint = named_checkpoint(unit.session, unit.project_id, reference)
    if checkpoint is None or not unit.caller.may(frozenset({Scope.WRITE})):
        return not_exported
    unit.session.execute(ONE_AT_A_TIME, {"id": checkpoint.id})
    job = newest_export(unit.session, checkpoint.id, project_id=unit.project_id)
    if job is not None and job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
        return NotFound(
            f"{not_exported.message} Job {job.id} was to, and is {job.status}: see why, and retry it.",
            param="model",
            code=not_exported.code,
        )
    if job is None or job.status in ENDED_JOB:
        job = _submit(unit, checkpoint)
    wait = _seconds_left(unit, job)
    return Unavailable(
        f"{reference} is being exported by job {job.id}, since it was asked for. It answers once that has "
        f"succeeded: ask again in {wait} s.",
        param="model",
        code="checkpoint_exporting",
        retry_after_seconds=wait,
    )


def _submit(unit: Unit, checkpoint: Checkpoint) -> Job:
    found = find_checkpoint(unit.session, checkpoint.id, project_id=unit.project_id)
    training = found[1].params if found is not None else {}
    params = {"checkpoint": checkpoint.id, "quantizations": training.get("quantizations", ["Q4_K_M"])[:1]}
    params["publish"] = training.get("publish", "merged")
    return submit(unit, read_request({"kind": JobKind.EXPORT, "params": params}))


def _seconds_left(unit: Unit, job: Job) -> int:
    within = unit.settings.lease_seconds
    done = outlook(unit.session, job, live_within_seconds=within).finishes_at
    if done is None:
        return RETRY_AFTER_SECONDS
    left = (done - Reckoning(unit.session, within).now).total_seconds()
    return min(max(math.ceil(left), 2), RETRY_AFTER_MOST_SECONDS)
