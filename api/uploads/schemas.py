"""Bodies of uploads, in OpenAI's shape."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.files.schemas import ExpiresAfter, FileOut, UploadPurpose

PART = "part-0199f3a2c4d17b60a1b2c3d4e5f60718"


class UploadRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "filename": "faq.jsonl",
                    "bytes": 1_500_000_000,
                    "mime_type": "text/jsonl",
                    "purpose": "fine-tune",
                }
            ]
        },
    )

    filename: str = Field(min_length=1, max_length=1000)
    bytes: int = Field(ge=1, description="Of the whole file; its parts have to come to as many.")
    mime_type: str = Field(
        default="", max_length=200, description="Not needed: a file is known by its content."
    )
    purpose: UploadPurpose
    expires_after: ExpiresAfter | None = Field(default=None, description="Of the file that it becomes.")


class CompleteRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"part_ids": [PART]}]})

    part_ids: list[Annotated[str, StringConstraints(max_length=100)]] = Field(
        min_length=1, max_length=10_000, description="In the order in which they make the file."
    )
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")] | None = Field(
        default=None, description="Of the whole file, if it is to be checked."
    )


class UploadOut(BaseModel):
    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileOut | None = Field(description="What it has become.")


class PartOut(BaseModel):
    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
