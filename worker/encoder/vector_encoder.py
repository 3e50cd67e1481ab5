"""The compiled functions from Python, behind the interface that ggml's own encoder has."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worker.steps.one_pass.encoding import Encoded, GgmlEncoder, Imatrix, Rows


@dataclass(frozen=True)
class Block:
    """How a type is encoded: so many elements into so many bytes, by this function of the library."""

    elements: int
    bytes: int
    function: str
    weighs: bool  # whether ggml heeds an importance matrix


BLOCKS = {
    "Q8_0": Block(32, 34, "encode_q8_0", weighs=False),
    "Q4_K": Block(256, 144, "encode_q4_k", weighs=True),
    "Q5_K": Block(256, 176, "encode_q5_k", weighs=True),
    "Q6_K": Block(256, 210, "encode_q6_k", weighs=True),
}


class VectorEncoder:
    """Encodes by vectors what it can, and hands all else to ggml: other types, rows with an importance
    matrix, and blocks that hold NaN, infinities or numbers beyond what rounds.

    Args:
        library: the compiled functions.
        ggml: the encoder whose bytes these are.
    """

    name = "vectors"

    def __init__(self, library: Path, ggml: GgmlEncoder) -> None:
        self._ggml = ggml
        loaded = ctypes.CDLL(str(library))  # whose calls leave the interpreter's lock to other threads
        self._functions = {name: _declared(loaded, block.function) for name, block in BLOCKS.items()}
        self.lanes = int(loaded.lanes())

    def encode(self, rows: Rows, type_name: str, imatrix: Imatrix | None = None) -> Encoded:
        """See `Encoder.encode`."""
        encoded = self.encode_unchecked(rows, type_name, imatrix)
        self._ggml.check(encoded, type_name)
        return encoded

    def encode_unchecked(self, rows: Rows, type_name: str, imatrix: Imatrix | None = None) -> Encoded:
        """See `GgmlEncoder.encode_unchecked`."""
        block = BLOCKS.get(type_name)
        if block is None or rows.shape[1] % block.elements or (imatrix is not None and block.weighs):
            return self._ggml.encode_unchecked(rows, type_name, imatrix)
        rows = np.ascontiguousarray(rows, np.float32)
        count = rows.size // block.elements
        encoded = np.empty((count, block.bytes), np.uint8)
        left = np.empty(count, np.bool_)
        if self._functions[type_name](rows.ctypes.data, encoded.ctypes.data, count, left.ctypes.data):
            blocks = rows.reshape(count, block.elements)
            encoded[left] = self._ggml.encode_unchecked(blocks[left], type_name)
        return encoded.reshape(rows.shape[0], -1)


def _declared(library: Any, name: str) -> Any:
    function = getattr(library, name)
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    return function
