"""What a training ran on and with, so that another can be held against it."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from worker.step import Step

# What decides how numbers come out.
PACKAGES = (
    "lathe", "torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "tokenizers",
    "safetensors", "numpy",
)  # fmt: skip


def environment_of(step: Step, device: str) -> dict[str, Any]:
    """The packages by version, and the machine as far as it has a say in the last bits."""
    import torch

    return {
        "packages": versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cuda": torch.version.cuda,
        "device": device,
        "threads": step.input.settings.threads,
    }


def versions() -> dict[str, str]:
    return {name: found for name in PACKAGES if (found := _version(name)) is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())
