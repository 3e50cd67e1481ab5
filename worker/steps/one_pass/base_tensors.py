"""The tensors of a model's safetensors, read by rows, with an adapter's part already in them."""

import errno
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.steps.base_model import safetensors_header, weight_files
from worker.steps.one_pass.adapters import Adapter
from worker.steps.one_pass.refusals import NeedsThreeSteps

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
STORED = {torch.bfloat16: np.int16, torch.float16: np.float16, torch.float32: np.float32}

ReadRows = Callable[[torch.Tensor | slice], torch.Tensor]


@dataclass(frozen=True)
class BaseTensor:
    """One tensor of a safetensors file, as merging leaves it.

    Args:
        offset: of its first byte in the file.
        stored: the dtype it has there; `dtype`: the one of 16 bits that it is rounded to.
        adapter: what may be merged into it, under its `name`.
    """

    name: str
    path: Path
    offset: int
    shape: tuple[int, ...]
    stored: torch.dtype
    dtype: torch.dtype
    adapter: Adapter | None

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    def open(self) -> ReadRows:
        """A function that reads rows, by number, as (n, columns) in `dtype`; threads may share it."""
        delta = self.adapter.delta(self.name) if self.adapter is not None else None

        def read(rows: torch.Tensor | slice) -> torch.Tensor:
            stored = self._consecutive(rows) if isinstance(rows, slice) else self._scattered(rows)
            base = torch.from_numpy(stored).view(self.stored).to(self.dtype)
            return base if delta is None else delta.merged(base.float(), rows).to(self.dtype)

        return read

    def _consecutive(self, rows: slice) -> npt.NDArray[Any]:
        """Read in one piece, into memory that the last piece had: a map would be fetched page by page."""
        start, stop, _ = rows.indices(max(self.rows, 1))
        array = np.empty((stop - start, self.columns), STORED[self.stored])
        left, offset = array.data.cast("B"), self.offset + start * self.columns * array.itemsize
        with self.path.open("rb", buffering=0) as file:
            while left:
                count = os.preadv(file.fileno(), [left], offset)
                if not count:
                    raise OSError(errno.EIO, "The file ends within a tensor", str(self.path))
                left, offset = left[count:], offset + count
        return array

    def _scattered(self, rows: torch.Tensor) -> npt.NDArray[Any]:
        """Mapped for one call at a time, so that what was read leaves this process's memory."""
        shape = (max(self.rows, 1), self.columns)
        return np.array(np.memmap(self.path, STORED[self.stored], "r", self.offset, shape)[rows.numpy()])

    def whole(self) -> torch.Tensor:
        return self.open()(slice(None)).reshape(self.shape)


def read_tensors(weights: Path, dtype: torch.dtype, adapter: Adapter | None) -> dict[str, BaseTensor]:
    """List a model's tensors by name, in the order of its files.

    Raises:
        NeedsThreeSteps: a tensor is of a dtype that the pass does not read, or the adapter changes one that
            is not there, or not as a matrix.
    """
    found: dict[str, BaseTensor] = {}
    for path in weight_files(weights):
        header = safetensors_header(path)
        start = 8 + int.from_bytes(path.open("rb").read(8), "little")
        for name in sorted(set(header) - {"__metadata__"}):
            about = header[name]
            if about["dtype"] not in DTYPES:
                raise NeedsThreeSteps(f"{name} is stored as {about['dtype']}")
            offset = start + int(about["data_offsets"][0])
            shape, stored = tuple(about["shape"]), DTYPES[about["dtype"]]
            found[name] = BaseTensor(name, path, offset, shape, stored, dtype, adapter)
    for name in sorted(adapter.names if adapter is not None else ()):
        if name not in found or len(found[name].shape) != 2:
            raise NeedsThreeSteps(f"the adapter changes {name}, which is no matrix in the base's files")
    return found
