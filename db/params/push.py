"""What an upload to a hub takes."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from db.params.values import Auto, CheckpointId, HubId, HubRevision, JobId, Params


class PushParams(Params):
    """Upload a model, or what a job has trained, to a Hugging Face hub."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=600)] | None = Field(
        default=None, description="A model of this server: `faq`, `faq@2`, an alias.", examples=["faq"]
    )
    job: JobId | None = Field(default=None, description="A job whose training is done.")
    checkpoint: CheckpointId | None = Field(
        default=None, description="A checkpoint, as GET /v1/jobs/{id}/checkpoints lists them."
    )
    repository: HubId = Field(
        description="Where it goes: `organisation/name`. It is made if there is none.", examples=["org/faq"]
    )
    what: Literal["adapter", "merged", "gguf"] | Auto = Field(
        default="auto",
        description="The adapter; whole weights in 16 bits, merged with it, as safetensors; the GGUF files "
        "that are published. auto: the adapter of a fine-tune, else the weights, else the GGUF files.",
    )
    quantizations: list[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]{1,20}$")]] | None = Field(
        default=None, min_length=1, max_length=16, description="Of gguf: which files. Default: all."
    )
    branch: HubRevision = Field(default="main", description="Of the repository. It is made if there is none.")
    private: bool = Field(
        default=True,
        description="A new repository is private; one that is public is refused unless this is false.",
    )
    license: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")] | None = Field(
        default=None,
        description="What the card names, by the hub's identifier. Default: the base's, as its own card has "
        "it.",
        examples=["apache-2.0"],
    )
    message: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="What the commit says. Default: what it holds.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PushParams":
        if [self.model, self.job, self.checkpoint].count(None) != 2:
            raise ValueError("model, job or checkpoint: give exactly one of the three, to say what is pushed")
        if self.quantizations is not None and self.what != "gguf":
            raise ValueError('quantizations are of GGUF files: give what as "gguf"')
        if self.quantizations is not None and len(set(self.quantizations)) != len(self.quantizations):
            raise ValueError("quantizations names a type twice")
        return self
