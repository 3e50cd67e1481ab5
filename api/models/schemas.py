"""Bodies of models: OpenAI's fields, and what Lathe knows beside them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from db.params.values import ModelName


class Parameters(BaseModel):
    """Ollama's parameters: what a request says itself goes before them."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(default=None, ge=0, le=10)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=1_000_000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    typical_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repeat_last_n: int | None = Field(default=None, ge=-1, le=1_048_576)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=0, le=2**31 - 1)
    num_predict: int | None = Field(default=None, ge=-1, le=1_048_576, description="Tokens; -1: no limit.")
    num_ctx: int | None = Field(default=None, ge=16, le=1_048_576, description="On Ollama only.")
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(
        default=None, min_length=1, max_length=16
    )


class TurnIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=100_000)


class CreateModel(BaseModel):
    """What Ollama's Modelfile says."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        json_schema_extra={
            "examples": [
                {
                    "name": "pirate",
                    "system": "Talk as a pirate.",
                    "parameters": {"temperature": 1},
                }
            ]
        },
    )

    name: ModelName
    from_: str = Field(
        default="tiny", alias="from", min_length=1, max_length=400, description="A model that answers."
    )
    system: str | None = Field(default=None, min_length=1, max_length=100_000)
    template: str | None = Field(
        default=None, min_length=1, max_length=100_000, description="A Go template; on Ollama only."
    )
    parameters: Parameters = Parameters()
    messages: list[TurnIn] | None = Field(
        default=None, min_length=1, max_length=200, description="Turns that every conversation begins with."
    )


class CopyModel(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "faq-kept"}]})

    name: ModelName


class QuantizationOut(BaseModel):
    name: str = Field(description="What chat calls it.", examples=["faq:Q8_0"])
    quantization: str
    bytes: int
    sha256: str
    backend: str
    verification: dict[str, Any] | None = Field(description="How it answers beside the trained weights.")


class VersionOut(BaseModel):
    number: int
    name: str = Field(examples=["faq@2"])
    created_at: int
    job_id: str | None
    base_model: str | None
    details: dict[str, Any]
    prompting: dict[str, Any] | None = Field(
        description="Of one that was created from another: what stands before each prompt."
    )
    aliases: list[str] = Field(
        description="Other names of this version.", examples=[["ft:tiny:default:faq:job-…"]]
    )
    can_be_base: bool = Field(description="Whether it keeps weights that a job can start from.")
    quantizations: list[QuantizationOut]


class ModelOut(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = Field(default="lathe", description="`lathe`, or the backend that has it by itself.")
    name: str
    type: Literal["chat", "embedding"] = "chat"
    status: Literal["ready", "not made yet", "not served"] = Field(
        description="`not made yet`: the job that first needs it makes it. `not served`: weights that are "
        "stored quantised, a base for fine-tunes."
    )
    version: int | None = Field(description="The version that the id answers with.")
    versions: list[VersionOut]
    collection_id: str | None = Field(description="The collection of its own documents, if it has any.")


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelOut]


class ModelLoaded(BaseModel):
    id: str
    object: Literal["model"] = "model"
    loaded: Literal[True] = True
    backend: str


class ModelUnloaded(BaseModel):
    id: str
    object: Literal["model"] = "model"
    loaded: Literal[False] = False
    backend: str


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True
    versions: list[int] = Field(description="The numbers of the versions that are gone.")
    current_version: int | None = Field(description="What the name answers with now, if it is still there.")
    collection_id: str | None = Field(description="Its own collection, gone with the name.")


class ModelsDeleted(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelDeleted]
