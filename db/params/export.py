"""What an export takes."""

from pydantic import Field, model_validator

from db.params.publishing import PUBLISH, Publish, check_publish
from db.params.values import (
    ASKED_QUANTIZATIONS,
    IMATRIX,
    AskedQuantizations,
    CheckpointId,
    JobId,
    ModelName,
    Params,
)


class ExportParams(Params):
    """The last three steps, for a checkpoint or for what a job has trained."""

    checkpoint: CheckpointId | None = Field(
        default=None, description="A checkpoint, as GET /v1/jobs/{id}/checkpoints lists them."
    )
    job: JobId | None = Field(
        default=None, description="A job whose training is done: its adapter, or its weights."
    )
    name: ModelName | None = Field(
        default=None,
        description="The name the model answers to. Default: <name of its job>-step-<N> for a checkpoint, "
        "the job's own for a job.",
        examples=["faq-step-20"],
    )
    quantizations: AskedQuantizations = Field(default=["Q4_K_M"], description=ASKED_QUANTIZATIONS)
    imatrix: bool = IMATRIX
    publish: Publish = PUBLISH

    @model_validator(mode="after")
    def _consistent(self) -> "ExportParams":
        if (self.checkpoint is None) == (self.job is None):
            raise ValueError("checkpoint or job: give exactly one of the two, to say what is exported")
        check_publish(dict(self))
        return self
