"""Bodies of batches, in OpenAI's shape."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from api.files.schemas import ExpiresAfter
from api.pages import Identified
from db.params.predict import BatchEndpoint
from db.params.values import FileId, Metadata

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class BatchRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-0199f3a2c4d17b60a1b2c3d4e5f60718",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                }
            ]
        },
    )

    input_file_id: FileId = Field(description="A JSONL file of requests, uploaded with the purpose batch.")
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = Field(default=None, description="What you want to find it by: 16 pairs.")
    output_expires_after: ExpiresAfter | None = Field(
        default=None, description="How long the output and error files are kept."
    )


class BatchError(BaseModel):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """What the answers' own `usage` adds up to."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchOut(Identified):
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None = Field(description="Known once the file has been read.")
    errors: BatchErrors | None = Field(description="Why it failed, by lines of the input file.")
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None
