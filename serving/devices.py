"""The NVIDIA GPUs of this machine, as the driver's own `nvidia-smi` shows them: no CUDA is started to look.

A device is known by its UUID, which stays the same in every container and after a change of slots, and
which CUDA_VISIBLE_DEVICES takes.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from db.errors import InvalidInput

# In the environment of a process: the devices that CUDA shows it.
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
ALL, NONE = "all", "none"
QUERY = ("--query-gpu=index,uuid,memory.total,mig.mode.current,name", "--format=csv,noheader,nounits")
IN_PARTS = "Enabled"  # MIG: what a step would hold is a part of it, which has a name of its own
TIMEOUT_SECONDS = 20
MIB = 1024**2


@dataclass(frozen=True)
class Device:
    """One GPU. `memory_bytes` is None where the driver does not tell, as with memory shared with the CPU."""

    id: str
    index: int
    name: str
    memory_bytes: int | None

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def list_devices() -> list[Device]:
    """The GPUs that the driver shows, but for those that are cut in parts (MIG); none without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        argv = [program, *QUERY]
        answer = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (subprocess.TimeoutExpired, OSError):
        return []
    if answer.returncode != 0:
        return []
    lines = [[field.strip() for field in line.split(",", 4)] for line in answer.stdout.splitlines() if line]
    return [_read(uuid, index, memory, name) for index, uuid, memory, mig, name in lines if mig != IN_PARTS]


def _read(uuid: str, index: str, memory: str, name: str) -> Device:
    return Device(uuid, int(index), name, int(memory) * MIB if memory.isdigit() else None)


def visible_devices(shown: str | None) -> list[Device]:
    """The devices that a process sees whose CUDA_VISIBLE_DEVICES is `shown`; None: all there are.

    As CUDA reads it: UUIDs may be shortened, and what follows one that does not exist is not seen.
    """
    there, seen = list_devices(), []
    if shown is None:
        return there
    for name in map(str.strip, shown.split(",")):
        found = [each for each in there if name == str(each.index) or (name and each.id.startswith(name))]
        if len(found) != 1:
            break
        seen += found
    return list(dict.fromkeys(seen))


def choose_devices(named: str, *, setting: str) -> list[Device]:
    """The devices that `all`, or a list of numbers and UUIDs between commas, means here.

    Raises:
        InvalidInput: one of them does not exist, or there is none at all; lists those there are.
    """
    there = list_devices()
    if named == ALL:
        if not there:
            raise InvalidInput(_missing(ALL, there, setting), param=setting)
        return there
    wanted = [find_device(part.strip(), there, setting=setting) for part in named.split(",")]
    return list(dict.fromkeys(wanted))


def choose_groups(named: str, *, setting: str) -> list[list[Device]]:
    """The devices that `all`, or a list as of `choose_devices`, means here; those with a plus between them
    belong together, and each of the others stands alone.

    Raises:
        InvalidInput: one of them does not exist, or belongs to two.
    """
    if named == ALL:
        return [[device] for device in choose_devices(ALL, setting=setting)]
    groups: list[list[Device]] = []
    for part in named.split(","):
        group = choose_devices(part.replace("+", ","), setting=setting)
        if group in groups:
            continue
        twice = next((each for each in group if any(each in other for other in groups)), None)
        if twice is not None:
            raise InvalidInput(f"{setting} is {named!r}, and {twice} is in two groups.", param=setting)
        groups.append(group)
    return groups


def find_device(named: str, there: Sequence[Device], *, setting: str) -> Device:
    """The device that a number or a UUID means.

    Raises:
        InvalidInput: it does not exist; lists those there are.
    """
    for device in there:
        if is_named(device, named):
            return device
    raise InvalidInput(_missing(named, there, setting), param=setting)


def is_named(device: Device, named: str) -> bool:
    """Whether a list of numbers and UUIDs between commas, or `all`, names a device."""
    names = [name.strip() for name in named.split(",")]
    return named == ALL or str(device.index) in names or device.id in names


def _missing(named: str, there: Sequence[Device], setting: str) -> str:
    if not there:
        return f"{setting} is {named!r}, but nvidia-smi shows no GPU on this machine."
    known = "; ".join(f"{device.index}: {device.name}, {device.id}" for device in there)
    return f"{setting} is {named!r}, and there is no such GPU. There are: {known}."
