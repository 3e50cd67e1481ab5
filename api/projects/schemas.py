"""Bodies of projects."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.pages import Identified

Id = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$",
        description="Small letters, digits and hyphens within: it is what people call the project.",
    ),
]
Name = Annotated[str, Field(max_length=200)]
MOST = 2**53  # more is not the same number in every language
Limit = Annotated[int | None, Field(ge=0, le=MOST)]


class Quotas(BaseModel):
    """How much a project may use. `null`: as much as there is."""

    max_jobs: Limit = Field(default=None, description="Queued and running at once.")
    max_gpu_minutes: Limit = Field(
        default=None, description="A calendar month (UTC), on the queues `train` and `gpu`."
    )
    max_bytes: Limit = Field(default=None, description="Stored: files, artifacts, models, documents.")
    max_requests_per_minute: Limit = None


class ProjectRequest(Quotas):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"id": "research", "max_jobs": 4, "max_gpu_minutes": 600}]},
    )

    id: Id
    name: Name = ""


class ProjectChange(Quotas):
    """What is given is changed, `null` lifts a limit; the rest stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"max_gpu_minutes": 1200}]})

    name: Name | None = None


class ProjectOut(Identified):
    object: Literal["project"] = "project"
    name: str
    status: Literal["active", "archived"]
    max_jobs: int | None
    max_gpu_minutes: int | None
    max_bytes: int | None
    max_requests_per_minute: int | None
    created_at: int
    archived_at: int | None


class UsageOut(BaseModel):
    jobs: int = Field(description="Queued and running now.")
    gpu_minutes: float = Field(description="Of this calendar month (UTC).")
    bytes: int = Field(description="Stored.")


class ProjectWithUsage(ProjectOut):
    usage: UsageOut
