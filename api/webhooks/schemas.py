"""Bodies of webhooks, in OpenAI's shape where OpenAI has one."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.pages import Identified
from db.webhook_events import DeliveryStatus, EventType


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("name must be one line of printable characters.")
    return text


def _distinct(types: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(types))


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_line)]
Url = Annotated[str, Field(max_length=2048, description="http or https, at a public address.")]
EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=50), AfterValidator(_distinct)]


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [fields]})


class EndpointRequest(BaseModel):
    model_config = _example(
        name="deploy bot", url="https://hooks.example.com/lathe", event_types=["job.succeeded", "job.failed"]
    )

    name: Name
    url: Url
    event_types: EventTypes


class EndpointChange(BaseModel):
    """What is given is changed; the rest stays."""

    model_config = _example(event_types=["job.failed"])

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class Rotation(BaseModel):
    model_config = _example(keep_old_secret_active_for_24_hours=True)

    keep_old_secret_active_for_24_hours: bool = Field(
        default=True, description="False for a secret that has leaked: it is worth nothing at once."
    )


class TestRequest(BaseModel):
    model_config = _example(event_type="job.succeeded")

    event_type: EventType


class EndpointOut(Identified):
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str = Field(examples=["whsec_…Vyk1="])


class EndpointWithSecret(EndpointOut):
    signing_secret: str = Field(
        description="Shown in this answer alone; a repetition of the request gets the same answer."
    )


class EndpointDeleted(BaseModel):
    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TestResult(BaseModel):
    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    success: Literal[True] = True
    status_code: int = Field(description="What the endpoint answered.")


class EventTypeList(BaseModel):
    object: Literal["list"] = "list"
    data: list[str]


class SecretOut(BaseModel):
    """What the webhooks of jobs' `webhook_url` are signed with."""

    object: Literal["webhook_secret"] = "webhook_secret"
    created_at: int
    updated_at: int
    read_at: int | None = Field(description="When it was shown; it is shown once.")
    signing_secret_hint: str


class SecretWithValue(SecretOut):
    signing_secret: str = Field(description="Shown this once.")


class TryOut(BaseModel):
    number: int
    started_at: int
    ended_at: int | None = Field(description="None while it is under way.")
    status_code: int | None
    error: str | None
    response: str | None = Field(description="The beginning of the receiver's answer, at most 1 kB.")


class DeliveryOut(Identified):
    object: Literal["webhook_delivery"] = "webhook_delivery"
    event_id: str = Field(description="The `webhook-id` that is sent, the same at every try.")
    event_type: str
    job_id: str | None
    endpoint_id: str | None
    url: str | None = Field(description="The job's `webhook_url`, where it goes to no endpoint.")
    status: DeliveryStatus
    created_at: int
    next_attempt_at: int | None
    finished_at: int | None
    tries: list[TryOut]
