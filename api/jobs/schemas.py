"""Bodies of jobs."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from fastapi import Body
from pydantic import BaseModel, ConfigDict, Field, create_model

from api.devices.schemas import DeviceName
from api.pages import Identified
from db.kinds import PARAMS
from db.params.values import Metadata, Params

EXAMPLES: dict[str, dict[str, Any]] = {
    "fine_tune": {
        "kind": "fine_tune",
        "params": {
            "base_model": "tiny",
            "training_file": "file-0199f3a2c4d17b60a1b2c3d4e5f60718",
            "name": "faq",
        },
    },
    "estimate": {
        "kind": "estimate",
        "params": {
            "base_model": "tiny",
            "training_file": "file-0199f3a2c4d17b60a1b2c3d4e5f60718",
            "name": "faq",
        },
    },
    "estimate_quantize": {"kind": "estimate_quantize", "params": {"base_model": "tiny", "name": "tiny-gptq"}},
    "ingest": {
        "kind": "ingest",
        "params": {
            "collection": "vs-0199f3a2c4d17b60a1b2c3d4e5f60718",
            "files": ["file-0199f3a2c4d17b60a1b2c3d4e5f60718"],
        },
    },
    "pretrain": {"kind": "pretrain", "params": {"name": "my-tiny", "layers": 4, "steps": 300}},
    "pull": {"kind": "pull", "params": {"source": {"hub": "Qwen/Qwen3-0.6B"}, "name": "qwen"}},
    "push": {"kind": "push", "params": {"model": "faq", "repository": "org/faq", "what": "adapter"}},
    "predict": {
        "kind": "predict",
        "params": {
            "model": "faq",
            "input_file": "file-0199f3a2c4d17b60a1b2c3d4e5f60718",
            "prompt": "{context}\n\n{input}",
            "inference_kwargs": {"temperature": 0, "max_tokens": 200},
        },
    },
    "batch": {
        "kind": "batch",
        "params": {
            "input_file": "file-0199f3a2c4d17b60a1b2c3d4e5f60718",
            "endpoint": "/v1/chat/completions",
        },
    },
    "evaluate": {"kind": "evaluate", "params": {"model": "faq", "metrics": ["loss", "exact_match"]}},
    "inspect": {
        "kind": "inspect",
        "params": {"base_model": "tiny", "training_file": "file-0199f3a2c4d17b60a1b2c3d4e5f60718"},
    },
    "quantize": {"kind": "quantize", "params": {"base_model": "tiny", "name": "tiny-gptq", "bits": 4}},
    "export": {
        "kind": "export",
        "params": {
            "checkpoint": "checkpoint-0199f3a2c4d17b60a1b2c3d4e5f60718",
            "name": "faq-step-20",
            "quantizations": ["Q8_0"],
        },
    },
}


MaxRuntime = Annotated[int, Field(ge=1, le=366 * 24 * 3600)]


class JobRequestBase(BaseModel):
    """What every kind of job takes beside its own params."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    params: Params
    max_attempts: int = Field(
        default=3, ge=1, le=20, description="Tries of one step whose worker, host or process died."
    )
    max_runtime_seconds: MaxRuntime | None = Field(
        default=None, description="The running time of all its attempts; then it saves and fails."
    )
    priority: int = Field(default=0, ge=-1000, le=1000, description="Higher goes first.")
    metadata: Metadata | None = Field(default=None, description="What you want to find it by: 16 pairs.")
    webhook_url: str | None = Field(
        default=None, max_length=2048, description="Told when the job ends, signed with the project's secret."
    )


def _request_of(kind: str, params: type[Params]) -> type[JobRequestBase]:
    return create_model(
        f"{params.__name__.removesuffix('Params')}Request",
        __base__=JobRequestBase,
        kind=(Literal[kind], Field(description="What the job does.")),  # type: ignore[arg-type]
        params=(params, ...),
    )


# One model for each row of PARAMS, so that a new kind of job is nothing new here.
# The kind of job that estimates another, by that one's kind.
ESTIMATED = {"fine_tune": "estimate", "quantize": "estimate_quantize"}
REQUESTS = {kind: _request_of(kind, params) for kind, params in PARAMS.items()}
if TYPE_CHECKING:
    JobRequest = JobRequestBase
    EstimateRequest = JobRequestBase
else:
    EstimateRequest = Annotated[
        Union[tuple(REQUESTS[kind] for kind in ESTIMATED)],  # noqa: UP007 - made here
        Field(discriminator="kind"),
        Body(openapi_examples={kind: {"value": EXAMPLES[kind]} for kind in ESTIMATED}),
    ]
    JobRequest = Annotated[
        Union[tuple(REQUESTS.values())],  # noqa: UP007 - made here
        Field(discriminator="kind"),
        Body(openapi_examples={kind: {"value": example} for kind, example in EXAMPLES.items()}),
    ]


class CloneRequest(BaseModel):
    """What is to be other than in the job that is cloned."""

    model_config = ConfigDict(extra="forbid")

    params: dict[str, Any] = Field(
        default_factory=dict,
        max_length=100,
        description="The params to change; all others stay. A null is a value like any other.",
    )
    max_attempts: int | None = Field(default=None, description="Default, as of the fields below: the job's.")
    max_runtime_seconds: int | None = Field(default=None, description="null: no limit.")
    priority: int | None = None
    metadata: dict[str, Any] | None = None
    webhook_url: str | None = Field(default=None, description="null: nobody is told.")


class RetryRequest(BaseModel):
    """What is to be other than at the job's last try."""

    model_config = ConfigDict(extra="forbid")

    max_runtime_seconds: MaxRuntime | None = Field(
        default=None, description="Of all its attempts, those before included; null: no limit."
    )


CloneBody = Annotated[
    CloneRequest | None,
    Body(openapi_examples={"changed": {"value": {"params": {"learning_rate": 1e-4, "name": "faq2"}}}}),
]
RetryBody = Annotated[
    RetryRequest | None, Body(openapi_examples={"longer": {"value": {"max_runtime_seconds": 7200}}})
]


class AttemptOut(BaseModel):
    """One try at a step."""

    number: int
    worker: str
    host: str
    devices: list[DeviceName] = Field(description="The GPUs that it holds, or held.")
    started_at: int
    ended_at: int | None
    outcome: str | None = Field(description="done, lost, refused, exhausted or released")
    exit_code: int | None
    signal: int | None
    resumed_from: int | None = Field(description="The step number of the checkpoint it went on from.")
    error: "JobError | None" = Field(description="Why it ended; null for done and released.")


class StepOut(BaseModel):
    name: str
    queue: str
    status: str
    attempt: int = Field(description="The number of the newest attempt; 0 before the first.")
    started_at: int | None
    finished_at: int | None


class StepWithAttempts(StepOut):
    attempts: list[AttemptOut]


class Progress(BaseModel):
    """How far the running step is."""

    step: str
    done: int
    total: int | None
    unit: str | None
    failed: int | None = Field(description="How many of these came to nothing, where that is counted.")
    eta_seconds: float | None


class JobError(BaseModel):
    model_config = ConfigDict(extra="allow")

    code: str
    message: str
    param: str | None = None


class JobOut(Identified):
    object: Literal["job"] = "job"
    kind: str
    status: str
    params: dict[str, Any]
    priority: int
    max_attempts: int
    max_runtime_seconds: int | None
    metadata: dict[str, str] | None
    webhook_url: str | None
    cloned_from: str | None = Field(description="The job it was cloned from.")
    waits_for: str | None = Field(description="The job that makes what this one needs first.")
    created_at: int
    started_at: int | None
    finished_at: int | None
    steps: list[StepOut]
    progress: Progress | None
    result: dict[str, Any] | None = Field(
        description="`result.model` answers chat once the job has succeeded."
    )
    error: JobError | None


class JobWithAttempts(JobOut):
    steps: list[StepWithAttempts]  # type: ignore[assignment]
    queue_position: int | None = Field(
        description="The place of its waiting step in the line before its queue: 1 is claimed next."
    )
    estimated_start_at: int | None = Field(description="When its waiting step starts; null: not known.")
    estimated_finish_at: int | None = Field(description="When the job is done; null: not known.")
    runtime_seconds: float = Field(description="The running time of all its attempts so far.")


class JobDeleted(BaseModel):
    id: str
    object: Literal["job"] = "job"
    deleted: Literal[True] = True


class EventOut(Identified):
    object: Literal["job.event"] = "job.event"
    created_at: int
    type: str = Field(description="message, or metrics, whose values are in data")
    level: str
    step: str | None
    attempt: int | None
    message: str
    data: dict[str, Any] | None = Field(
        description="Figures; `status` is what the step, or without a step the job, has become."
    )


class MetricsOut(Identified):
    """Values that a step measured at one moment."""

    object: Literal["job.metrics"] = "job.metrics"
    created_at: int
    step: str | None
    attempt: int | None
    data: dict[str, Any] = Field(examples=[{"step": 10, "loss": 1.24, "tokens_per_second": 850.0}])


class CheckpointOut(Identified):
    """A state of training that can be gone on from, exported, and then chatted with."""

    object: Literal["job.checkpoint"] = "job.checkpoint"
    job_id: str
    step: str
    attempt: int
    step_number: int
    metrics: dict[str, float | None] = Field(examples=[{"epoch": 2.0, "loss": 0.81, "eval_loss": 0.94}])
    bytes: int | None = Field(description="What it takes on the disk.")
    exported_as: str | None = Field(
        description="The model it answers as, once exported; its own id answers too.",
        examples=["faq-step-20@1"],
    )
    created_at: int


class SeriesOut(BaseModel):
    """One measured value, by training step. Of more points than asked for, lows and highs are kept."""

    step: str | None = Field(description="The step of the job, such as train.")
    name: str = Field(examples=["loss"])
    measured: int = Field(description="How many points there are; more than are given if it was thinned.")
    steps: list[int]
    values: list[float]
    attempts: list[int] = Field(description="Which attempt measured each point.")


class MetricSeries(BaseModel):
    object: Literal["job.metric_series"] = "job.metric_series"
    job_id: str
    points: int
    superseded: int = Field(description="Measurements left out, since a later attempt began before them.")
    data: list[SeriesOut]


class LogLine(Identified):
    object: Literal["job.log"] = "job.log"
    step: str
    attempt: int
    line: str


class ArtifactOut(Identified):
    object: Literal["job.artifact"] = "job.artifact"
    name: str
    bytes: int
    sha256: str
    step: str
    created_at: int
