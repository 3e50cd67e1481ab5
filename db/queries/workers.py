"""Which workers live, and which queues they serve."""

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, false, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import Device, Worker
from db.states import Queue

FORGOTTEN_AFTER = timedelta(hours=1)


def sign_in(
    session: Session,
    *,
    name: str,
    host: str,
    pid: int,
    slots: dict[str, int],
    device_id: str | None = None,
    memory_bytes: int | None = None,
) -> None:
    """Say that the worker `name` lives; workers not seen for long are forgotten.

    Args:
        slots: for each queue that it serves, how many steps it runs at once.
        memory_bytes: that its processes may take of the host's.
    """
    # In a container the next worker has the number, and so the name, of the one before.
    values = {"host": host, "pid": pid, "slots": slots, "device_id": device_id}
    values["memory_bytes"] = memory_bytes
    statement = insert(Worker).values(name=name, **values)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[Worker.name], set_={"seen_at": func.clock_timestamp(), **values}
        )
    )
    session.execute(delete(Worker).where(Worker.seen_at < func.clock_timestamp() - FORGOTTEN_AFTER))


def sign_out(session: Session, name: str) -> None:
    session.execute(delete(Worker).where(Worker.name == name))


def live_queues(session: Session, *, within_seconds: float) -> set[str]:
    """The queues served by at least one worker that was seen within the last `within_seconds`."""
    since = func.clock_timestamp() - timedelta(seconds=within_seconds)
    rows = session.scalars(select(Worker.slots).where(Worker.seen_at >= since))
    return {queue for slots in rows for queue in slots}


def training_machines(session: Session, *, within_seconds: float) -> list[dict[str, Any]]:
    """Where the live workers of the queue `train` are, and what memory there is; each place once."""
    since = func.clock_timestamp() - timedelta(seconds=within_seconds)
    query = (
        select(
            Worker.host,
            func.max(Worker.memory_bytes).label("ram_bytes"),
            Device.name.label("device"),
            Device.memory_bytes.label("device_bytes"),
            func.coalesce(Device.shares, false()).label("shares"),
        )
        .outerjoin(Device, Device.id == Worker.device_id)
        .where(Worker.seen_at >= since, func.jsonb_exists(Worker.slots, str(Queue.TRAIN)))
        .group_by(Worker.host, Device.name, Device.memory_bytes, Device.shares)
        .order_by(Worker.host, Device.name)
    )
    return [dict(row) for row in session.execute(query).mappings()]
