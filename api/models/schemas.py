"""Bodies of models: OpenAI's fields, and what Lathe knows beside them."""

from typing import Any, Literal

from pydantic import BaseModel, Field


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
    status: Literal["ready", "not made yet"] = Field(
        description="`not made yet`: the job that first needs it makes it."
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
