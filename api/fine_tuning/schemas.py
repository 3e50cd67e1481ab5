"""Bodies of fine-tuning jobs, in OpenAI's shape."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.pages import Identified
from db.params.fine_tune import FineTuneParams
from db.params.values import Auto, FileId, Metadata


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Hyperparameters(Body):
    n_epochs: Annotated[float, Field(gt=0, le=10_000)] | Auto | None = Field(
        default="auto", description="Passes over the training rows."
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Auto | None = Field(
        default="auto", description="Rows of one step of the optimiser."
    )
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] | Auto | None = Field(
        default="auto", description="Times the learning rate that auto chooses for a model of that size."
    )


class PreferenceHyperparameters(Hyperparameters):
    beta: Annotated[float, Field(gt=0, le=2)] | Auto | None = Field(
        default="auto", description="How much it costs to move away from the base model."
    )


class Supervised(Body):
    hyperparameters: Hyperparameters | None = None


class Preferences(Body):
    hyperparameters: PreferenceHyperparameters | None = None


class Method(Body):
    type: Literal["supervised", "dpo", "reinforcement"] = Field(
        description="How it learns: from answers (`supervised`), or from which of two is preferred (`dpo`). "
        "`reinforcement` is refused."
    )
    supervised: Supervised | None = None
    dpo: Preferences | None = None
    reinforcement: dict[str, Any] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _of_openais(cls, value: object) -> object:
        if value in get_args(FineTuneParams.model_fields["method"].annotation) and value not in (
            "supervised",
            "dpo",
        ):
            raise ValueError(
                f"{value!r} is no method of OpenAI's. This server trains by it: POST /v1/jobs with the kind "
                f"fine_tune and the param method {value!r}"
            )
        return value


class Wandb(Body):
    project: str = Field(description="The one that the server's runs go to (LATHE_TRACKER_PROJECT).")
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class Integration(Body):
    type: Literal["wandb"] = "wandb"
    wandb: Wandb


class FineTuningRequest(Body):
    """OpenAI's fields, and `params` for whatever else a fine-tune of Lathe takes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "model": "tiny",
                    "training_file": "file-0199f3a2c4d17b60a1b2c3d4e5f60718",
                    "suffix": "faq",
                    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
                }
            ]
        },
    )

    model: str = Field(min_length=1, max_length=200, description="The base model; see `base_model` of a job.")
    training_file: FileId
    validation_file: FileId | None = None
    suffix: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Becomes the model's name, in lower case. Another job with it makes the next version.",
    )
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1, description="Drawn if it is not given.")
    metadata: Metadata | None = Field(default=None, description="What you want to find it by: 16 pairs.")
    integrations: list[Integration] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = Field(
        default=None, description="Where they stood before there was `method`."
    )
    params: dict[str, Any] = Field(
        default={},
        max_length=100,
        description="Lathe's own params of a fine-tune that OpenAI has no name for, by `extra_body`.",
        examples=[{"quantizations": ["Q8_0"], "alias": "ft:gpt-4o-mini:acme:faq:9x8y7z"}],
    )


class HyperparametersOut(BaseModel):
    """As they were given; once they are settled, what `auto` has become."""

    n_epochs: int | float | Auto
    batch_size: int | Auto
    learning_rate_multiplier: float | Auto


class PreferenceHyperparametersOut(HyperparametersOut):
    beta: float | Auto


class SupervisedOut(BaseModel):
    hyperparameters: HyperparametersOut


class PreferencesOut(BaseModel):
    hyperparameters: PreferenceHyperparametersOut


class MethodOut(BaseModel):
    type: Literal["supervised", "dpo"]
    supervised: SupervisedOut | None = None
    dpo: PreferencesOut | None = None


class FineTuningError(BaseModel):
    code: str
    message: str
    param: str | None


Status = Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled", "paused"]


class FineTuningJobOut(Identified):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    error: FineTuningError | None
    estimated_finish: int | None = Field(description="Of one job alone; lists have null.")
    fine_tuned_model: str | None = Field(
        description="What answers chat, once it has succeeded; so does the model's short name."
    )
    finished_at: int | None
    hyperparameters: HyperparametersOut
    integrations: list[Integration] | None
    metadata: dict[str, str] | None
    method: MethodOut | None = Field(
        description="None of a fine-tune by a method that OpenAI has no name for."
    )
    model: str
    organization_id: str = Field(description="The project.")
    result_files: list[str] = Field(description="A CSV file of what was measured, by step.")
    seed: int
    status: Status
    trained_tokens: int | None
    training_file: str
    validation_file: str | None


class FineTuningEventOut(Identified):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class CheckpointMetrics(BaseModel):
    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None
    train_reward_accuracy: float | None = Field(
        default=None, description="Of dpo: for how many pairs the preferred answer has gained more."
    )
    train_reward_margin: float | None = Field(
        default=None, description="Of dpo: by how much, times beta, in nats."
    )
    valid_reward_accuracy: float | None = None
    valid_reward_margin: float | None = None


class FineTuningCheckpointOut(Identified):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str = Field(description="What answers chat.")
    fine_tuning_job_id: str
    metrics: CheckpointMetrics
    step_number: int
