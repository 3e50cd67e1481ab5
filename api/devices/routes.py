"""HTTP of devices."""

from api.devices.schemas import DeviceOut, HeldByServing, HeldByStep
from api.pages import Page, page, unix_seconds
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from db.queries.devices import Holding, list_holdings

router = make_router("devices")


@router.get("/v1/devices", response_model=Page[DeviceOut], summary="List devices")
@transactional
def list_devices(unit: Unit) -> Page[DeviceOut]:
    """The GPUs that workers have been given, and what holds each: a step, or the server of models."""
    return page(
        [_device_out(holding, unit.project_id) for holding in list_holdings(unit.session)], has_more=False
    )


def _device_out(holding: Holding, project_id: str) -> DeviceOut:
    device = holding.device
    return DeviceOut(
        id=device.id,
        host=device.host,
        index=device.index,
        name=device.name,
        memory_bytes=device.memory_bytes,
        worker=holding.worker,
        serves=device.serves,
        shares=device.shares,
        held_by=_held_by(holding, project_id),
        unloaded=device.unloaded,
    )


def _held_by(holding: Holding, project_id: str) -> HeldByStep | HeldByServing | None:
    if holding.attempt is not None and holding.step is not None:
        return HeldByStep(
            job=holding.step.job_id if holding.attempt.project_id == project_id else None,
            step=holding.step.name,
            attempt=holding.attempt.number,
            since=unix_seconds(holding.attempt.started_at),
        )
    return HeldByServing(backend=holding.device.serves) if holding.device.serves else None
