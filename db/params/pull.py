"""What fetching a model takes."""

from pydantic import Field, model_validator

from db.params.values import (
    FileId,
    HubId,
    HubPath,
    HubRevision,
    ModelName,
    OllamaName,
    Params,
    PromptFormatName,
    Quantizations,
)


class PullSource(Params):
    """Where a model that is already made comes from: one of the three."""

    file: FileId | None = Field(
        default=None,
        description="An uploaded GGUF, or a .zip of a folder with config.json, tokenizer and safetensors.",
    )
    hub: HubId | None = Field(
        default=None,
        description="A repository of the Hugging Face hub: safetensors, or GGUF files.",
        examples=["Qwen/Qwen3-0.6B"],
    )
    revision: HubRevision | None = Field(
        default=None, description="Of the hub: a branch, tag or commit. The commit it is goes with the model."
    )
    filename: HubPath | None = Field(
        default=None, description="Of the hub: which GGUF file, where the repository has several."
    )
    ollama: OllamaName | None = Field(
        default=None, description="A model of Ollama's library.", examples=["qwen3:0.6b"]
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PullSource":
        if [self.file, self.hub, self.ollama].count(None) != 2:
            raise ValueError("file, hub or ollama: give exactly one of the three, to say where it comes from")
        if self.hub is None and (self.revision or self.filename):
            raise ValueError("revision and filename are the hub's: give them with hub")
        return self


class PullParams(Params):
    """Fetch a model that is already made: from an upload, a hub, or Ollama's library."""

    source: PullSource = Field(description="Where it comes from.")
    name: ModelName = Field(description="The name the model answers to.", examples=["qwen"])
    quantizations: Quantizations = Field(
        default=["Q4_K_M"],
        description="Of safetensors: the first one is served by the name. A GGUF is served as it is.",
    )
    prompt_format: PromptFormatName | None = Field(
        default=None,
        description="How conversations are written for a model that brings no chat template; else the "
        "template that it brings is kept.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "PullParams":
        if self.source.ollama is not None and self.prompt_format is not None:
            raise ValueError("prompt_format: a model of Ollama's library brings its template, leave it out")
        return self
