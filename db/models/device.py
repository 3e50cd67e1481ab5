from typing import Any

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt


class Device(Base):
    """A GPU that a worker has, by the UUID that its maker gave it.

    It is held by the attempt that has it and has not ended, of which there is at most one (see
    `AttemptDevice`); else by the backend that `serves` from it, if one does. `unloaded` are models that made
    room for a step, and are to be loaded again.
    """

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    index: Mapped[int]
    name: Mapped[str]
    memory_bytes: Mapped[int | None]
    serves: Mapped[str | None]  # the backend whose models are here: llama_server, ollama
    shares: Mapped[bool]  # there is memory for them and a step at once
    unloaded: Mapped[list[Any]] = mapped_column(server_default="[]")
    created_at: Mapped[CreatedAt]


class AttemptDevice(Base):
    """A device that an attempt holds, or held: all that its worker has, from the claim until it ends.

    `open` is the attempt's own, and follows it through the foreign key: however an attempt ends, its devices
    are free at that moment.
    """

    __tablename__ = "attempt_devices"
    __table_args__ = (
        ForeignKeyConstraint(
            ["attempt_id", "open"], ["attempts.id", "attempts.open"], onupdate="CASCADE", ondelete="CASCADE"
        ),
        # No two hold one device at a time.
        Index("uq_attempt_devices_device_id", "device_id", unique=True, postgresql_where="open"),
    )

    attempt_id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"), primary_key=True)
    open: Mapped[bool]
