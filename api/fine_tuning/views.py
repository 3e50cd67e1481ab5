"""Rows as OpenAI's fine-tuning jobs, events and checkpoints."""

from typing import Any, Literal, cast

from api.fine_tuning.schemas import (
    CheckpointMetrics,
    FineTuningCheckpointOut,
    FineTuningError,
    FineTuningEventOut,
    FineTuningJobOut,
    HyperparametersOut,
    Integration,
    MethodOut,
    PreferenceHyperparametersOut,
    PreferencesOut,
    Status,
    SupervisedOut,
)
from api.jobs.views import event_id
from api.pages import unix_seconds, unix_seconds_or_none
from db.models import Checkpoint, Event, Job
from db.queries.aliases import checkpoint_name, fine_tuned_name
from db.queries.outlook import Outlook
from db.states import JobStatus, StepStatus

AUTO = "auto"
OPENAIS_METHODS = ("supervised", "dpo")
# A job that is pausing may still end otherwise; one that is being cancelled can only be cancelled.
STATUSES: dict[str, Status] = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.CANCELLING: "cancelled",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}
THEIR_METRICS = {
    "loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
    "eval_loss": "valid_loss",
    "eval_token_accuracy": "valid_mean_token_accuracy",
    "reward_accuracy": "train_reward_accuracy",
    "reward_margin": "train_reward_margin",
    "eval_reward_accuracy": "valid_reward_accuracy",
    "eval_reward_margin": "valid_reward_margin",
}
IN_WORDS = {"loss": "training loss", "eval_loss": "validation loss", "reward_margin": "reward margin"}


def fine_tuning_job_out(
    job: Job, integrations: list[Integration] | None, outlook: Outlook | None = None
) -> FineTuningJobOut:
    results = {step.name: step.result or {} for step in job.steps}
    succeeded = job.status == JobStatus.SUCCEEDED
    hyperparameters = _hyperparameters(job, results)
    seed = job.params["seed"]
    return FineTuningJobOut(
        id=job.id,
        created_at=unix_seconds(job.created_at),
        error=_error(job),
        estimated_finish=unix_seconds_or_none(outlook.finishes_at) if outlook is not None else None,
        fine_tuned_model=fine_tuned_name(job) if succeeded and "publish" in results else None,
        finished_at=unix_seconds_or_none(job.finished_at),
        hyperparameters=hyperparameters,
        integrations=integrations,
        metadata=job.notes,
        method=_method(job, hyperparameters),
        model=job.params["base_model"],
        organization_id=job.project_id,
        result_files=results.get("train", {}).get("result_files", []),
        seed=seed if seed >= 0 else results.get("prepare", {}).get("seed", seed),
        status=_status(job),
        trained_tokens=results.get("train", {}).get("trained_tokens") if succeeded else None,
        training_file=_training_file(job, results),
        validation_file=job.params.get("validation_file"),
    )


def _training_file(job: Job, results: dict[str, dict[str, Any]]) -> str:
    """Of several files the first; of rows from a database the file that they were kept in."""
    named = [job.params["training_file"], *(each["file"] for each in job.params.get("training_files", []))]
    kept = results.get("prepare", {}).get("result_files", [])
    return next((file_id for file_id in [*named, *kept] if file_id), "")


def _status(job: Job) -> Status:
    reading = any(step.name == "prepare" and step.status == StepStatus.RUNNING for step in job.steps)
    return "validating_files" if job.status == JobStatus.RUNNING and reading else STATUSES[job.status]


def _error(job: Job) -> FineTuningError | None:
    if not job.error:
        return None
    return FineTuningError(code=job.error["code"], message=job.error["message"], param=job.error.get("param"))


def _hyperparameters(job: Job, results: dict[str, dict[str, Any]]) -> HyperparametersOut:
    settled = results.get("train", {}).get("hyperparameters") or results.get("prepare", {}).get(
        "hyperparameters", {}
    )

    def shown(name: str) -> Any:
        given = job.params.get(name, AUTO)
        return settled.get(name, AUTO) if given == AUTO else given

    epochs, multiplier = shown("epochs"), shown("learning_rate_multiplier")
    found = {
        "n_epochs": int(epochs) if epochs != AUTO and epochs == int(epochs) else epochs,
        "batch_size": shown("effective_batch_size"),
        "learning_rate_multiplier": multiplier if multiplier == AUTO else round(multiplier, 6),
    }
    if job.params.get("method") == "dpo":
        return PreferenceHyperparametersOut(**found, beta=shown("beta"))
    return HyperparametersOut(**found)


def _method(job: Job, hyperparameters: HyperparametersOut) -> MethodOut | None:
    """OpenAI's name of the method, with its hyperparameters; None where theirs has none for it."""
    if job.params.get("method", "supervised") not in OPENAIS_METHODS:
        return None
    if isinstance(hyperparameters, PreferenceHyperparametersOut):
        return MethodOut(type="dpo", dpo=PreferencesOut(hyperparameters=hyperparameters))
    return MethodOut(type="supervised", supervised=SupervisedOut(hyperparameters=hyperparameters))


def fine_tuning_event_out(event: Event) -> FineTuningEventOut:
    data = event.data
    if event.type == "metrics":
        data = {THEIR_METRICS.get(name, name): value for name, value in (event.data or {}).items()}
    return FineTuningEventOut(
        id=event_id(event.id),
        created_at=unix_seconds(event.created_at),
        level=cast(Literal["info", "warn", "error"], event.level),
        message=event.message or _in_words(event.data or {}),
        type=cast(Literal["message", "metrics"], event.type),
        data=data,
    )


def _in_words(measured: dict[str, Any]) -> str:
    told = [
        f"{words} {measured[name]:.4g}" for name, words in IN_WORDS.items() if measured.get(name) is not None
    ]
    return f"Step {measured.get('step', 0)}: {', '.join(told) or 'measured'}"


def fine_tuning_checkpoint_out(job: Job, checkpoint: Checkpoint) -> FineTuningCheckpointOut:
    measured = {
        THEIR_METRICS[name]: value for name, value in checkpoint.metrics.items() if name in THEIR_METRICS
    }
    # It is always all of the validation rows.
    full = {f"full_{name}": value for name, value in measured.items() if name.startswith("valid_")}
    return FineTuningCheckpointOut(
        id=checkpoint.id,
        created_at=unix_seconds(checkpoint.created_at),
        fine_tuned_model_checkpoint=checkpoint_name(job, checkpoint),
        fine_tuning_job_id=job.id,
        metrics=CheckpointMetrics(step=checkpoint.step_number, **measured, **full),
        step_number=checkpoint.step_number,
    )
