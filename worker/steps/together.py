"""What the processes that train together agree on; of a process that trains alone, all of it is its own word.

They talk over a group of their own on the CPU (gloo), so that agreeing never waits for a GPU's queue. Each of
these is called by all of them, in the same order.
"""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# Whoever waits for one that hangs is ended by the step's stall limit; to load a model may take long.
PATIENCE = timedelta(hours=2)


def join(rendezvous: Path, *, rank: int, count: int, local_rank: int) -> None:
    """Meet the others. What trains on GPUs takes that of its number.

    Args:
        rendezvous: a file that none of them has made yet, in a folder that all of them see.
    """
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(
        backend, init_method=rendezvous.as_uri(), rank=rank, world_size=count, timeout=PATIENCE
    )


def count() -> int:
    """How many train together."""
    group = _joined()
    return int(group.get_world_size()) if group is not None else 1


def is_first() -> bool:
    """Whether this is the process that speaks for all, and writes what is kept."""
    group = _joined()
    return group is None or group.get_rank() == 0


def wait() -> None:
    """Go on once all have come as far."""
    group = _joined()
    if group is not None:
        group.barrier(group=_control())


def from_first(do: Callable[[], T]) -> T:
    """Have the first process do something, and give all of them what came of it."""
    group = _joined()
    if group is None:
        return do()
    found: list[Any] = [do() if is_first() else None]
    group.broadcast_object_list(found, src=0, group=_control())
    return found[0]


def to_first(found: T) -> list[T]:
    """What each process has found, by rank, for the first one; the others get nothing."""
    group = _joined()
    if group is None:
        return [found]
    every: list[Any] | None = [None] * group.get_world_size() if is_first() else None
    group.gather_object(found, every, dst=0, group=_control())
    return every or []


def agreed(*flags: bool) -> list[bool]:
    """What the first process says."""
    group = _joined()
    if group is None:
        return list(flags)
    import torch

    said = torch.tensor(flags, dtype=torch.uint8)
    group.broadcast(said, src=0, group=_control())
    return [bool(flag) for flag in said]


def _joined() -> Any:
    from torch import distributed

    return distributed if distributed.is_available() and distributed.is_initialized() else None


@cache
def _control() -> Any:
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)
