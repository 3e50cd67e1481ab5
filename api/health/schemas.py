"""Bodies of health."""

from typing import Literal

from pydantic import BaseModel, Field


class Alive(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = Field(description="Lathe's.")


class Part(BaseModel):
    """One thing that Lathe needs."""

    ok: bool
    required: bool = Field(description="Whether Lathe is not ready without it.")
    message: str | None = None


class Readiness(BaseModel):
    status: Literal["ready", "not ready"]
    parts: dict[str, Part]
