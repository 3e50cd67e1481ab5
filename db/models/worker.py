from typing import Any

from sqlalchemy import BigInteger
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt, JSONObject


class Worker(Base):
    """A live worker process, and the queues it serves; it renews `seen_at` as long as it lives."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    slots: Mapped[JSONObject]  # for each queue that it serves: how many steps it runs at once
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)  # of its host, or of what holds it
    device_ids: Mapped[list[Any]] = mapped_column(server_default="[]")  # which its steps hold together
    started_at: Mapped[CreatedAt]
    seen_at: Mapped[CreatedAt]
