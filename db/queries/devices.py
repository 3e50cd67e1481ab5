"""Which devices there are, and who holds each.

An attempt holds all the devices of its worker until it ends, however it ends: a lease that lapses frees them
too.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import exists, func, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import Attempt, AttemptDevice, Device, Step, Worker


@dataclass(frozen=True)
class Holding:
    """A device, and what holds it: an attempt of a step, or nobody.

    Args:
        worker: the name of the worker that has it, as it was last seen.
    """

    device: Device
    attempt: Attempt | None
    step: Step | None
    worker: str | None = None


def register_device(session: Session, device: Device) -> None:
    """Write a device's row, or what has changed of it."""
    columns = ("host", "index", "name", "memory_bytes", "serves", "shares")
    values = {column: getattr(device, column) for column in columns}
    row = insert(Device).values(id=device.id, **values)
    session.execute(row.on_conflict_do_update(index_elements=[Device.id], set_=values))


def list_holdings(session: Session) -> list[Holding]:
    """Every device that a worker has, or that is held still, with its holder."""
    worker = (
        select(Worker.name)
        .where(func.jsonb_exists(Worker.device_ids, Device.id))
        .order_by(Worker.seen_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = (
        select(Device, Attempt, Step, worker)
        .outerjoin(AttemptDevice, (AttemptDevice.device_id == Device.id) & AttemptDevice.open)
        .outerjoin(Attempt, Attempt.id == AttemptDevice.attempt_id)
        .outerjoin(Step, Step.id == Attempt.step_id)
        .where(or_(Attempt.id.is_not(None), worker.is_not(None)))
        .order_by(Device.host, Device.index, Device.id)
    )
    return [Holding(*row) for row in session.execute(query)]


def find_refusing(session: Session, backend: str) -> Holding | None:
    """A device from which `backend` serves while a step holds it that shares it with no model.

    Not once the step's lease has lapsed: its processes have ended, though no worker may be left to say so.
    """
    query = (
        select(Device, Attempt, Step)
        .join(AttemptDevice, (AttemptDevice.device_id == Device.id) & AttemptDevice.open)
        .join(Attempt, Attempt.id == AttemptDevice.attempt_id)
        .join(Step, Step.id == Attempt.step_id)
        .where(
            Device.serves == backend,
            Device.shares.is_(False),
            Step.lease_expires_at > func.clock_timestamp(),
        )
        .order_by(Device.index)
        .limit(1)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else Holding(*row)


def are_held(session: Session, device_ids: Collection[str]) -> bool:
    """Whether an attempt holds one of them."""
    query = select(exists().where(AttemptDevice.device_id.in_(device_ids), AttemptDevice.open))
    return session.scalars(query).one()


def take_devices(session: Session, device_ids: Collection[str]) -> bool:
    """Lock devices for this transaction, in which an attempt may then be opened that holds them.

    Returns:
        False when another attempt holds one, or somebody else the lock: a frozen worker may, for long.
    """
    query = select(Device.id).where(Device.id.in_(device_ids)).order_by(Device.id)
    locked = session.scalars(query.with_for_update(key_share=True, skip_locked=True)).all()
    # A statement of its own: it sees what was committed before the locks were ours.
    return len(locked) == len(device_ids) and not are_held(session, device_ids)


ANOTHER_IS_FREE = text(
    """
    SELECT EXISTS (
        SELECT FROM workers
        WHERE device_ids <> '[]' AND jsonb_exists(slots, :queue)
          AND NOT jsonb_exists_any(device_ids, CAST(:device_ids AS text[]))
          AND seen_at > clock_timestamp() - make_interval(secs => :within)
          AND NOT EXISTS (
              SELECT FROM devices WHERE jsonb_exists(workers.device_ids, devices.id) AND (
                  (:undisturbed AND devices.serves IS NOT NULL AND NOT devices.shares)
                  OR EXISTS (SELECT FROM attempt_devices WHERE device_id = devices.id AND open)
              )
          )
    )
    """
)


def another_is_free(
    session: Session,
    device_ids: Collection[str],
    queue: str,
    *,
    within_seconds: float,
    undisturbed: bool = False,
) -> bool:
    """Whether a live worker of `queue` has other devices, none of which is held.

    Args:
        undisturbed: such that no served model would have to go.
    """
    parameters = {
        "device_ids": list(device_ids), "queue": queue, "within": within_seconds, "undisturbed": undisturbed,
    }  # fmt: skip
    return bool(session.scalars(ANOTHER_IS_FREE, parameters).one())
