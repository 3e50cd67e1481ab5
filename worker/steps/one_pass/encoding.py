"""From rows of fp32 to the blocks of a ggml type.

ggml's own encoder is the reference: any other must give its bytes, all of them, or is not used.
"""

import ctypes
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

Rows = npt.NDArray[np.float32]  # (rows, columns), contiguous
Imatrix = npt.NDArray[np.float32]  # (columns,)
Encoded = npt.NDArray[np.uint8]  # (rows, bytes of an encoded row)


class Encoder(Protocol):
    """What turns rows into blocks; called by several threads at once."""

    name: str

    def encode(self, rows: Rows, type_name: str, imatrix: Imatrix | None = None) -> Encoded:
        """Encode each row by itself.

        Args:
            rows: (rows, columns) of fp32, contiguous; columns are a multiple of the type's block.
            type_name: as ggml's list has it: Q4_K, Q8_0, F16 …
            imatrix: (columns,) the weight of each column's error; None: all count the same.

        Returns:
            (rows, bytes of an encoded row).

        Raises:
            NotEncodable: the type is unknown, or the result would hold NaN or infinite scales.
        """


class NotEncodable(Exception):
    """The rows cannot be stored in this type; the message is for the user."""


class GgmlEncoder:
    """The encoder of llama-quantize, out of the same shared library.

    Args:
        library: libggml-base of the llama.cpp in use.
    """

    name = "ggml"

    def __init__(self, library: Path) -> None:
        self._ggml = _declared(ctypes.CDLL(str(library)))

    def row_bytes(self, type_name: str, columns: int) -> int:
        return int(self._ggml.ggml_row_size(self._id(type_name), columns))

    def encode(self, rows: Rows, type_name: str, imatrix: Imatrix | None = None) -> Encoded:
        """See `Encoder.encode`."""
        encoded = self.encode_unchecked(rows, type_name, imatrix)
        self.check(encoded, type_name)
        return encoded

    def encode_unchecked(self, rows: Rows, type_name: str, imatrix: Imatrix | None = None) -> Encoded:
        """Encode, whatever comes of NaN and infinite values.

        Raises:
            NotEncodable: the type is unknown, or does not fit the columns.
        """
        kind = self._id(type_name)
        count, columns = rows.shape
        if columns % self._ggml.ggml_blck_size(kind):
            raise NotEncodable(f"{columns} columns are not whole blocks of {type_name}.")
        if imatrix is None and self._ggml.ggml_quantize_requires_imatrix(kind):
            raise NotEncodable(f"{type_name} needs an importance matrix.")
        encoded = np.empty((count, self.row_bytes(type_name, columns)), np.uint8)
        weights = None if imatrix is None else imatrix.ctypes.data
        self._ggml.ggml_quantize_chunk(
            kind, rows.ctypes.data, encoded.ctypes.data, 0, count, columns, weights
        )
        return encoded

    def check(self, encoded: Encoded, type_name: str) -> None:
        """See that blocks hold neither NaN nor infinite scales, as llama-quantize does after each row.

        Raises:
            NotEncodable: they do.
        """
        if not self._ggml.ggml_validate_row_data(self._id(type_name), encoded.ctypes.data, encoded.nbytes):
            raise NotEncodable(f"The weights hold NaN or infinite values, which {type_name} cannot store.")

    def _id(self, type_name: str) -> int:
        try:
            return int(GGMLQuantizationType[type_name])
        except KeyError:
            raise NotEncodable(f"There is no type {type_name!r}.") from None


def _declared(ggml: Any) -> Any:
    """Say what the functions take: ctypes would pass every number as a 32-bit int."""
    pointer, int64 = ctypes.c_void_p, ctypes.c_int64
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, int64, int64, int64, pointer]
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    ggml.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    ggml.ggml_row_size.restype = ctypes.c_size_t
    ggml.ggml_row_size.argtypes = [ctypes.c_int, int64]
    ggml.ggml_blck_size.restype = int64
    ggml.ggml_blck_size.argtypes = [ctypes.c_int]
    ggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    ggml.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    return ggml


def ggml_library(bin_folder: Path) -> Path | None:
    """The shared library beside llama-quantize, or where an installation puts it; None: it is linked in."""
    for folder in (bin_folder, bin_folder.parent / "lib", bin_folder.parent / "lib64"):
        for name in ("libggml-base.so", "libggml-base.dylib"):
            if (folder / name).is_file():
                return folder / name
    return None


def find_encoder(bin_folder: Path) -> GgmlEncoder | None:
    """The encoder of the llama.cpp whose programs are in `bin_folder`, where it has a shared library."""
    library = ggml_library(bin_folder)
    return None if library is None else GgmlEncoder(library)
