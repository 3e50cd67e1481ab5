"""A fine-tune as OpenAI's clients ask for it, as a submit of ours."""

import re
import secrets
from typing import Any

from api.fine_tuning.schemas import (
    FineTuningRequest,
    Hyperparameters,
    Integration,
    PreferenceHyperparameters,
    Wandb,
)
from api.jobs.submission import read_request, submit
from api.unit_of_work import Unit
from db.errors import InvalidInput, NotFound
from db.models import Job
from db.queries.jobs import get_job
from db.settings import Settings
from db.states import JobKind

# What our params are called here.
THEIR_NAMES = {"base_model": "model", "name": "suffix"}
SET_BY_OPENAIS_FIELDS = {
    "base_model": "model",
    "training_file": "training_file",
    "validation_file": "validation_file",
    "seed": "seed",
    "epochs": "n_epochs",
    "effective_batch_size": "batch_size",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "method": "method",
    "beta": "method.dpo.hyperparameters.beta",
}
UNNAMEABLE = re.compile(r"[^a-z0-9._-]+")


def create(unit: Unit, body: FineTuningRequest) -> Job:
    """Submit a fine-tune.

    Raises:
        InvalidInput: as for any submit, or it asks for what this server does not do.
    """
    _check_integrations(unit.settings, body.integrations or [])
    asked = _hyperparameters(body)
    for name in body.params:
        if name in SET_BY_OPENAIS_FIELDS:
            raise InvalidInput(
                f"params.{name} is given by the field {SET_BY_OPENAIS_FIELDS[name]}: leave it out of params.",
                param=f"params.{name}",
            )
    params: dict[str, Any] = {
        "name": _name(body),
        **body.params,
        "base_model": body.model,
        "training_file": body.training_file,
        "validation_file": body.validation_file,
        "seed": secrets.randbelow(2**31) if body.seed is None else body.seed,
        "epochs": asked.n_epochs or "auto",
        "effective_batch_size": asked.batch_size or "auto",
        "learning_rate_multiplier": asked.learning_rate_multiplier or "auto",
        "method": body.method.type if body.method is not None else "supervised",
    }
    if isinstance(asked, PreferenceHyperparameters):
        params["beta"] = asked.beta or "auto"
    try:
        return submit(
            unit, read_request({"kind": JobKind.FINE_TUNE, "params": params, "metadata": body.metadata})
        )
    except InvalidInput as error:
        param = THEIR_NAMES.get(error.param or "", error.param)
        message = re.sub(r"^name\b", "suffix", error.message)
        raise InvalidInput(message, param=param, code=error.code) from error


def find(unit: Unit, job_id: str) -> Job:
    """A fine-tune of the project.

    Raises:
        NotFound: there is none by that id.
    """
    job = get_job(unit.session, job_id, project_id=unit.project_id)
    if job.kind != JobKind.FINE_TUNE:
        raise NotFound(f"Job {job_id} is no fine-tune: GET /v1/jobs/{job_id} shows it.", param="id")
    return job


def integrations_of(settings: Settings) -> list[Integration] | None:
    """What every training is told to, by the operator's settings."""
    if "wandb" not in settings.trackers:
        return None
    return [Integration(wandb=Wandb(project=settings.tracker_project))]


def _check_integrations(settings: Settings, asked: list[Integration]) -> None:
    """Weights & Biases is the operator's to set up, for all jobs: a request may only agree with it."""
    ours = integrations_of(settings)
    for number, integration in enumerate(asked):
        param = f"integrations[{number}].wandb"
        if ours is None:
            raise InvalidInput(
                f"{param}: this server tells no trainings to Weights & Biases. Leave it out, or have its "
                "operator add wandb to LATHE_TRACKERS.",
                param=param,
                code="not_supported",
            )
        if integration != ours[0]:
            raise InvalidInput(
                f"{param}: every run of this server goes to the project {settings.tracker_project!r}, under "
                "the model's name and without entity or tags: give project alone, and that one.",
                param=param,
                code="not_supported",
            )


def _hyperparameters(body: FineTuningRequest) -> Hyperparameters:
    method = body.method
    if method is None:
        return body.hyperparameters or Hyperparameters()
    if method.type == "reinforcement" or method.reinforcement is not None:
        raise InvalidInput(
            "method.type: this server does not train by 'reinforcement', only by 'supervised' and 'dpo'.",
            param="method.type",
            code="not_supported",
        )
    nested = {"supervised": method.supervised, "dpo": method.dpo}
    chosen = nested.pop(method.type)
    for other, given in nested.items():
        if given is not None:
            raise InvalidInput(
                f"method.{other} is given, and method.type is {method.type!r}: leave one of them out.",
                param=f"method.{other}",
            )
    hyperparameters = chosen.hyperparameters if chosen is not None else None
    if hyperparameters is not None and body.hyperparameters is not None:
        raise InvalidInput(
            f"hyperparameters are given twice: keep those in method.{method.type}.", param="hyperparameters"
        )
    return hyperparameters or body.hyperparameters or Hyperparameters()


def _name(body: FineTuningRequest) -> str:
    """The model's name: of the suffix, else of its base and of letters drawn, so that no other has it."""
    if body.suffix is None:
        base = _nameable(body.model.partition("@")[0].rpartition("/")[2])[:48] or "model"
        return f"{base}-{secrets.token_hex(4)}"
    name = _nameable(body.suffix)[:63]
    if not name:
        raise InvalidInput("suffix must have a letter of a to z, or a digit.", param="suffix")
    return name


def _nameable(text: str) -> str:
    return UNNAMEABLE.sub("-", text.lower()).strip("-._")
