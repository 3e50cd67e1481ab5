"""The tensors of the 16-bit file that the converter would write, without the file: some rows at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

from worker.steps.one_pass.encoding import Encoded, Rows
from worker.steps.one_pass.row_tensors import RowChunks

TYPE_OF = {torch.bfloat16: gguf.GGMLQuantizationType.BF16, torch.float16: gguf.GGMLQuantizationType.F16}


@dataclass(frozen=True)
class RowsRead:
    """Rows of a tensor: as that file would hold them, and what numbers these bytes are."""

    stored: Encoded  # (n, bytes of a row)
    values: Callable[[], Rows]  # (n, columns); on demand, for a tensor may be stored as it is


ReadStored = Callable[[int, int], RowsRead]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the converter's list.

    Args:
        shape: as the model has it: rows first.
        kind: its type in that file.
        content: what the converter's writer holds.
    """

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    content: Any

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    def open(self) -> ReadStored:
        """A function that reads the rows from `start` to `stop`; threads may share it."""
        if isinstance(self.content, RowChunks):
            return self._open_rows(self.content)
        array = np.ascontiguousarray(gguf.LazyNumpyTensor.to_eager(self.content)).reshape(self.rows, -1)

        def read(start: int, stop: int) -> RowsRead:
            stored = array[start:stop].view(np.uint8)
            return RowsRead(stored, lambda: self._values(stored))

        return read

    def _open_rows(self, chunks: RowChunks) -> ReadStored:
        """Rows of the base itself. Nearly always they have the file's type already."""
        tensor = chunks.tensor
        order, read_rows = tensor.order.reshape(-1), tensor.source.open()
        as_they_are = TYPE_OF[tensor.source.dtype] == self.kind

        def read(start: int, stop: int) -> RowsRead:
            rows = read_rows(_consecutive(order[start:stop]))
            if as_they_are:
                stored = rows.view(torch.int16).numpy().view(np.uint8)
                return RowsRead(stored, lambda: rows.float().numpy())
            array = gguf.quants.quantize(rows.to(tensor.dtype).numpy(), self.kind)
            stored = array.reshape(stop - start, -1).view(np.uint8)
            return RowsRead(stored, lambda: self._values(stored))

        return read

    def _values(self, stored: npt.NDArray[np.uint8]) -> Rows:
        values: Rows = gguf.quants.dequantize(stored, self.kind).reshape(len(stored), self.columns)
        return np.ascontiguousarray(values)


def _consecutive(rows: torch.Tensor) -> torch.Tensor | slice:
    """The same rows as a slice, which reads them in one piece, where they follow on one another."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and bool((rows.diff() == 1).all()):
        return slice(first, last + 1)
    return rows
