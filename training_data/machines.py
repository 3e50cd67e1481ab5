"""Where a training may run: what the workers of its queue report, or this machine if there are none."""

from dataclasses import dataclass
from typing import Any

# Of a device's memory, the driver keeps some for itself; of the host's, so do the other processes.
USABLE_DEVICE, USABLE_RAM = 0.95, 0.92


@dataclass(frozen=True)
class Machine:
    """A worker that trains. What is None is not known, and never a reason to refuse.

    Args:
        ram_bytes: of its host, or of the control group that holds it.
        device: the name of its GPUs; None: it trains on the CPU.
        device_bytes: of the smallest of them.
        devices: how many GPUs it has, which train together.
        shares: models that are served stay on the device while it trains.
    """

    host: str
    ram_bytes: int | None = None
    device: str | None = None
    device_bytes: int | None = None
    devices: int = 0
    shares: bool = False

    @property
    def usable_ram(self) -> int | None:
        return int(USABLE_RAM * self.ram_bytes) if self.ram_bytes is not None else None

    @property
    def usable_device(self) -> int | None:
        return int(USABLE_DEVICE * self.device_bytes) if self.device_bytes is not None else None

    def __str__(self) -> str:
        if self.device is None:
            return f"the CPU of {self.host}"
        return f"{f'{self.devices} × ' * (self.devices > 1)}{self.device} on {self.host}"


def read_machines(rows: list[dict[str, Any]]) -> list[Machine]:
    return [Machine(**row) for row in rows]
