"""Matrices as llama.cpp's converter handles them, of which only the order of rows is known.

The converter reshapes, swaps and slices what it is given, and asks for the numbers last. For a matrix of the
base that is nearly always a matter of which row comes where, so a `RowTensor` applies those operations to the
rows' numbers. The rows themselves are read later, some at a time. Whatever else the converter does to a
matrix goes to its own lazy tensors, which hold one tensor whole.
"""

import math
from typing import Any, cast

import numpy as np
import torch
from conversion import LazyTorchTensor  # type: ignore[import-not-found]  # theirs, found through sys.path
from gguf import LazyChunkedTensor

from worker.steps.one_pass.base_tensors import BaseTensor

NUMPY = {torch.float32: np.float32, torch.float16: np.float16}


class RowTensor:
    """Rows of one tensor, in some order.

    Args:
        order: (…) the number of each row; the tensor's shape is (…, columns).
        dtype: what it counts as; the values are those of `source.dtype`.
    """

    def __init__(self, source: BaseTensor, order: torch.Tensor, dtype: torch.dtype) -> None:
        self.source, self.order, self.dtype = source, order, dtype

    @classmethod
    def of(cls, source: BaseTensor) -> "RowTensor":
        return cls(source, torch.arange(source.rows).reshape(source.shape[:-1]), source.dtype)

    # --- what it looks like --------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.order.shape, self.source.columns))

    @property
    def ndim(self) -> int:
        return self.order.ndim + 1

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return math.prod(self.shape)

    # --- what leaves rows whole ----------------------------------------------------------------------

    def to(self, *args: Any, **options: Any) -> Any:
        if args == (torch.float32,) and not options:
            return RowTensor(self.source, self.order, torch.float32)
        return self.lazy().to(*args, **options)

    def float(self) -> Any:
        return self.to(torch.float32)

    def contiguous(self) -> "RowTensor":
        return self

    def reshape(self, *shape: Any) -> Any:
        wanted = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if wanted[-1] != self.source.columns or len(wanted) < 2:
            return self.lazy().reshape(*shape)
        return self._ordered(self.order.reshape(wanted[:-1]))

    view = reshape

    def swapaxes(self, first: int, second: int) -> Any:
        if any(axis % self.ndim == self.ndim - 1 for axis in (first, second)):
            return self.lazy().swapaxes(first, second)
        return self._ordered(self.order.swapaxes(first % self.ndim, second % self.ndim))

    transpose = swapaxes

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or (isinstance(index, int) and self.ndim > 2):
            return self._ordered(self.order[index])
        return self.lazy()[index]

    def __len__(self) -> int:
        return len(self.order)

    # --- what does not -------------------------------------------------------------------------------

    def lazy(self) -> Any:
        """The same for the converter's own lazy tensors."""
        meta = LazyTorchTensor.meta_with_dtype_and_shape(self.dtype, self.shape)
        return LazyTorchTensor(meta=meta, args=(self,), func=lambda rows: rows.whole())

    def whole(self) -> torch.Tensor:
        return self.source.open()(self.order.reshape(-1)).to(self.dtype).reshape(self.shape)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.lazy(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*_all_lazy(args), **{key: _all_lazy(value) for key, value in (kwargs or {}).items()})

    def numpy(self) -> "RowChunks":
        return RowChunks(self, self.shape, NUMPY[self.dtype])

    def _ordered(self, order: torch.Tensor) -> "RowTensor":
        return RowTensor(self.source, order, self.dtype)


def _all_lazy(value: Any) -> Any:
    if isinstance(value, RowTensor):
        return value.lazy()
    return type(value)(_all_lazy(each) for each in value) if isinstance(value, list | tuple) else value


def _delegate(operator: str) -> Any:
    """Python looks an operator's method up on the class, past `__getattr__`."""

    def method(self: RowTensor, *args: Any) -> Any:
        return getattr(self.lazy(), operator)(*_all_lazy(args))

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "neg", "radd", "rsub", "rmul", "rtruediv", "matmul"):
    setattr(RowTensor, f"__{_name}__", _delegate(f"__{_name}__"))


class RowChunks(LazyChunkedTensor):
    """A `RowTensor` on its way into a file, as the converter's writer takes it."""

    def __init__(self, tensor: RowTensor, shape: tuple[int, ...], dtype: Any, qtype: Any = None) -> None:
        super().__init__([], shape, dtype, qtype)
        self.tensor = tensor

    def quantize(self, qtype: Any) -> "RowChunks":
        """What this will be as `qtype`, which is one of 16 or 32 bits."""
        told = cast(Any, super().quantize(qtype))
        return RowChunks(self.tensor, told.shape, told.dtype, qtype)
