"""Bodies of API keys."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from api.pages import Identified
from db.keys import USUAL_SCOPES, Scope


def _one_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("name must be one line of printable characters.")
    return text


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_line)]


class KeyRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "nightly trainings", "scopes": ["read", "write"]}]},
    )

    name: Name
    scopes: list[Scope] = Field(
        default=list(USUAL_SCOPES),
        min_length=1,
        max_length=len(Scope),
        description="read: look at everything, and search; write: submit, upload, change, delete; "
        "inference: ask models; admin: keys, projects and audit log, and all of the others.",
    )
    project: str | None = Field(
        default=None, max_length=63, description="The one that it is for; yours unless given."
    )
    expires_at: int | None = Field(
        default=None, ge=0, le=253_402_300_799, description="Unix seconds; never unless given."
    )


class KeyOut(Identified):
    object: Literal["api_key"] = "api_key"
    name: str
    project: str
    prefix: str = Field(description="The beginning of the secret, to know it by.")
    scopes: list[Scope]
    status: Literal["active", "expired", "revoked"]
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None = Field(description="To the minute.")


class KeyWithSecret(KeyOut):
    key: str = Field(description="The secret. It is shown in this answer, and never again.")
