"""Which GPUs each part of a stack gets: the workers, and the chat server's models."""

from dataclasses import dataclass

from db.settings import Settings
from serving.devices import NONE, Device, choose_devices, choose_groups


@dataclass(frozen=True)
class Gpus:
    """The GPUs that a stack uses.

    Args:
        workers: for each worker those that it gets.
        serving: those that the chat server sees.
    """

    workers: list[list[Device]]
    serving: list[Device]


def assign_gpus(settings: Settings) -> Gpus | None:
    """Look for the GPUs that the settings name; None when they name none, and all parts see what CUDA shows.

    Raises:
        InvalidInput: one of them does not exist; lists those there are.
    """
    if settings.gpus in ("", NONE):
        return None
    workers = choose_groups(settings.gpus, setting="LATHE_GPUS")
    return Gpus(workers, _serving(settings, workers))


def _serving(settings: Settings, workers: list[list[Device]]) -> list[Device]:
    if settings.serving_device == NONE:
        return []
    if settings.serving_device:
        return choose_devices(settings.serving_device, setting="LATHE_SERVING_DEVICE")
    # Where a server of the user's own keeps its models only they know.
    theirs = settings.chat_backend == "ollama" or settings.chat_server_url is not None
    return [] if theirs else workers[0][:1]
