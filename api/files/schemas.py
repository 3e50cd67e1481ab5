"""Bodies of files, in OpenAI's shape."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.pages import Identified

UploadPurpose = Literal["fine-tune", "assistants", "batch", "user_data", "evals", "vision"]
Purpose = UploadPurpose | Literal["fine-tune-results", "batch_output"]  # these two are jobs'


class ExpiresAfter(BaseModel):
    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000, description="An hour to thirty days.")


class FileOut(Identified):
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    expires_at: int | None = Field(description="From then on it is found no more; null: never.")
    sha256: str = Field(description="Of the bytes as they arrived.")


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
