"""The model that lathe.yaml names: asked unless a request names another, and fetched at the first start."""

from collections.abc import Mapping

import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.caller import CALLER, Caller
from api.chat.service import newest_model
from api.jobs.submission import read_request, submit
from api.unit_of_work import Services, Unit
from db.errors import LatheError, NotFound, Unavailable
from db.lathe_yaml import ConfiguredModel
from db.models import DEFAULT_PROJECT, Job
from db.queries.configured_model import answers, came_from_there, find_pull, lock_fetching, pull_params
from db.queries.runtime import seconds_left
from db.states import ENDED_JOB, JobKind, JobStatus, StepStatus
from db.wording import how_far

RETRY_AFTER_SECONDS, RETRY_AFTER_MOST_SECONDS = 10, 60

log = structlog.get_logger(__name__)


async def fetch_at_start(services: Services) -> None:
    """Have the configured model fetched, unless it is there or on its way. One that failed is tried again."""
    CALLER.set(Caller())  # nobody asks: it is the operator's wish
    model = services.settings.configured_model
    if model is None or model.hub is None:
        return
    try:
        job = await services.run_in_transaction(lambda unit: _fetch(unit, model, anew=True))
    except (LatheError, SQLAlchemyError) as error:
        # The API answers for all other models meanwhile, and the next question for this one tries again.
        log.error("configured_model_not_fetched", model=model.name, error=str(error))
        return
    log.info("configured_model", model=model.name, job_id=job.id if job is not None else None)


def _fetch(unit: Unit, model: ConfiguredModel, *, anew: bool) -> Job | None:
    """The job that fetches it, which is made if there is none; None: it is there.

    Args:
        anew: also after one that ended without it.
    """
    lock_fetching(unit.session)
    job = find_pull(unit.session, model)
    if answers(unit.session, model.name):
        there = job is not None and job.status == JobStatus.SUCCEEDED
        if there or (job is None and came_from_there(unit.session, model)):
            return None
    if job is not None and not (anew and job.status in ENDED_JOB):
        return job
    return submit(unit, read_request({"kind": JobKind.PULL, "params": pull_params(model)}))


def default_model(unit: Unit) -> str:
    """The name that is asked unless a request names one: the configured one, else what was published last.

    Raises:
        NotFound: nothing is configured, and nothing has been published yet.
    """
    model = _configured(unit)
    return newest_model(unit) if model is None else model.name


def _configured(unit: Unit) -> ConfiguredModel | None:
    return unit.settings.configured_model if unit.project_id == DEFAULT_PROJECT else None


def sampling_of(services: Services, name: str) -> Mapping[str, int]:
    """What a prompt for the model is asked with where its request says nothing: as lathe.yaml has it."""
    model = services.settings.configured_model
    return model.sampling if model is not None and model.name == name else {}


def why_not_there(unit: Unit, reference: str, not_found: NotFound) -> LatheError:
    """How far the configured model is, if that is what was asked for and not found."""
    model = _configured(unit)
    if model is None or model.hub is None or reference != model.name:
        return not_found
    job = _fetch(unit, model, anew=False)
    if job is None:
        return not_found
    if job.status in ENDED_JOB:
        why = f": {job.error['message']}" if job.error else "."
        return NotFound(
            f"{reference} was to be fetched from {model.hub} by job {job.id}, which is {job.status}{why} "
            f"`lathe retry {job.id}`, or the next start of Lathe, tries again.",
            param="model",
            code="model_not_ready",
        )
    return _on_its_way(model, job)


def _on_its_way(model: ConfiguredModel, job: Job) -> Unavailable:
    step = next((step for step in job.steps if step.status == StepStatus.RUNNING), None)
    left = seconds_left(step) if step is not None and step.name == "pull" else None
    wait = round(left) if left is not None else RETRY_AFTER_SECONDS
    far = how_far(step.name, step.progress) if step is not None else str(job.status)
    return Unavailable(
        f"{model.name} is being fetched from {model.hub} by job {job.id}: {far}. It answers once that has "
        "succeeded.",
        param="model",
        code="model_downloading",
        retry_after_seconds=min(max(wait, 2), RETRY_AFTER_MOST_SECONDS),
    )
