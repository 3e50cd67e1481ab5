"""Which workers live, and which queues they serve."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import Worker
from db.states import Queue

FORGOTTEN_AFTER = timedelta(hours=1)


def sign_in(
    session: Session,
    *,
    name: str,
    host: str,
    pid: int,
    slots: dict[str, int],
    device_ids: Sequence[str] = (),
    memory_bytes: int | None = None,
) -> None:
    """Say that the worker `name` lives; workers not seen for long are forgotten.

    Args:
        slots: for each queue that it serves, how many steps it runs at once.
        device_ids: the GPUs that it has, which a step holds together.
        memory_bytes: that its processes may take of the host's.
    """
    # In a container the next worker has the number, and so the name, of the one before.
    values = {"host": host, "pid": pid, "slots": slots, "device_ids": list(device_ids)}
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


# A worker's steps have all of its devices: each takes as much as the smallest of them has.
MACHINES = text(
    """
    SELECT host, max(ram_bytes) AS ram_bytes, device, device_bytes, devices, shares FROM (
        SELECT workers.host, workers.memory_bytes AS ram_bytes, count(devices.id) AS devices,
               string_agg(DISTINCT devices.name, ', ') AS device, min(devices.memory_bytes) AS device_bytes,
               coalesce(bool_or(devices.shares), false) AS shares
        FROM workers LEFT JOIN devices ON jsonb_exists(workers.device_ids, devices.id)
        WHERE workers.seen_at >= clock_timestamp() - make_interval(secs => :within)
          AND jsonb_exists(workers.slots, :queue)
        GROUP BY workers.name
    ) AS each_worker
    GROUP BY host, device, device_bytes, devices, shares
    ORDER BY host, device NULLS LAST, devices
    """
)


def training_machines(session: Session, *, within_seconds: float) -> list[dict[str, Any]]:
    """Where the live workers of the queue `train` are, and what memory there is; each place once.

    Returns:
        rows with `device`, the name of its GPUs (None: it has none), `device_bytes`, of the smallest of them
        (None: the driver does not tell), and `devices`, how many there are.
    """
    parameters = {"within": within_seconds, "queue": str(Queue.TRAIN)}
    return [dict(row) for row in session.execute(MACHINES, parameters).mappings()]
