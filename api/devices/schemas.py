"""Bodies of devices."""

from typing import Literal

from pydantic import BaseModel, Field

from api.pages import Identified


class DeviceName(BaseModel):
    """A device, as what ran on it shows it."""

    id: str = Field(examples=["GPU-6d1a0b0c-5c0a-4c59-8f5e-6f2f5d5f7f11"])
    host: str
    index: int = Field(description="Its number among the host's.")
    name: str


class HeldByStep(BaseModel):
    type: Literal["step"] = "step"
    job: str | None = Field(description="None for a job of another project.")
    step: str
    attempt: int
    since: int


class HeldByServing(BaseModel):
    type: Literal["serving"] = "serving"
    backend: str


class DeviceOut(Identified):
    object: Literal["device"] = "device"
    host: str
    index: int = Field(description="Its number among the host's.")
    name: str
    memory_bytes: int | None
    worker: str | None = Field(description="The worker that has it. Of its GPUs a step holds all, or none.")
    serves: str | None = Field(description="The backend that keeps published models there.")
    shares: bool = Field(description="Whether a step leaves those models where they are.")
    held_by: HeldByStep | HeldByServing | None
    unloaded: list[str] = Field(description="Models that made room for a step, to be loaded again.")
