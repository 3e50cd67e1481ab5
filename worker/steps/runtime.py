"""What a child process must have set before the first numeric library is loaded."""

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from db.disk import DISK_FULL, DISK_FULL_MESSAGE
from db.errors import Exhausted

# OMP_WAIT_POLICY: spinning threads burn the cores that the other steps need.
# GPTQMODEL_DISABLE_PACK_EXT: it is compiled at its first use, behind a lock that a killed attempt leaves.
# USE_HUB_KERNELS: a foreign config.json could otherwise name code to fetch and run.
ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "passive",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "USE_HUB_KERNELS": "NO",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
}

# How safetensors and torch, which raise no OSError, say the same.
DISK_FULL_TEXTS = (
    "No space left on device",
    "os error 28",
    "PytorchStreamWriter failed writing",
    "unexpected pos",
)
GPU_MEMORY_OUT = ("CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def prepare_runtime(threads: int) -> None:
    """Set this process's environment for numeric work; call it before torch is imported."""
    os.environ.update(ENVIRONMENT)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(max(2, threads))  # with fewer it does not load a model


@contextmanager
def memory_errors_explained(advice: str) -> Iterator[None]:
    """Turn out-of-memory errors of torch, Python and the disk into `Exhausted` with advice.

    Raises:
        Exhausted: the device's memory, the host's memory or the disk ran out.
    """
    try:
        yield
    except MemoryError as error:
        raise Exhausted(f"The host's memory ran out. {advice}") from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise Exhausted(DISK_FULL_MESSAGE, code="disk_full") from error
        raise
    except Exception as error:
        text = str(error)
        if any(each in text for each in DISK_FULL_TEXTS):
            raise Exhausted(DISK_FULL_MESSAGE, code="disk_full") from error
        if type(error).__name__ == "OutOfMemoryError" or any(each in text for each in GPU_MEMORY_OUT):
            raise Exhausted(f"The GPU's memory ran out. {advice}") from error
        if "can't allocate memory" in text or "not enough memory" in text:
            raise Exhausted(f"The host's memory ran out. {advice}") from error
        raise


def require_disk(folder: Path, needed: int, what: str) -> None:
    """See that there is room for `needed` bytes before the work begins.

    Raises:
        Exhausted: there is not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Exhausted(
            f"{what} needs about {needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free: free some "
            "space, or let `lathe gc` do so, and retry the job.",
            code="disk_full",
        )


def computes_in_bfloat16() -> bool:
    """Whether the device has instructions for bfloat16; emulated, it is slower than float32."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_computes_in_bfloat16()


def cpu_computes_in_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16."""
    import torch

    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def peak_memory_bytes(torch: Any) -> int:
    """The most memory used so far: of the fullest device that this process uses, else the process's own."""
    if torch.cuda.is_available():
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
