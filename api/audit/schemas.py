"""Bodies of the audit log."""

from typing import Literal

from pydantic import Field

from api.pages import Identified


class AuditEntryOut(Identified):
    object: Literal["audit_entry"] = "audit_entry"
    created_at: int
    project: str | None = Field(description="None where nobody knows who asked.")
    key: str | None = Field(description="The key's id; LATHE_API_KEY for the operator's; None without one.")
    action: str = Field(description="The operation's `operationId` here.", examples=["submit_job"])
    method: str
    path: str
    target: str | None = Field(description="The id of what was made or changed.")
    status: int = Field(description="What the request was answered with.")
    code: str | None = Field(description="The error's, if it was one.")
    address: str | None
    request_id: str
    times: int = Field(description="Refusals of one kind within a second are one entry.")
