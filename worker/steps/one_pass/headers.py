"""GGUF headers: what the converter's writer puts before the tensors, and the same for quantised tensors.

llama-quantize copies the metadata and sets two fields anew, which thereby come last; a quantised header made
here is the same to the byte. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gguf

VERSION_KEY, TYPE_KEY = "general.quantization_version", "general.file_type"
COUNTS = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata
ARRAY = struct.Struct("<IIQ")  # that it is one, the type of its values, their number
UINT32 = int(gguf.GGUFValueType.UINT32)


@dataclass(frozen=True)
class TensorEntry:
    """One line of a header's list."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType

    @property
    def bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        count = 1
        for dimension in self.shape:
            count *= dimension
        return count // block * size


@dataclass(frozen=True)
class Layout:
    """A file's header, and where each tensor begins."""

    header: bytes
    offsets: dict[str, int]
    total_bytes: int


class Metadata:
    """The key-value part of a file, packed once by the converter's writer."""

    def __init__(self, writer: Any) -> None:
        self._count = len(writer.kv_data[0])
        self._packed = b"".join(
            writer._pack_val(key, gguf.GGUFValueType.STRING, add_vtype=False)
            + (
                _packed_array(value)
                or writer._pack_val(value.value, value.type, add_vtype=True, sub_type=value.sub_type)
            )
            for key, value in writer.kv_data[0].items()
        )
        self._types = {key: writer.kv_data[0][key].value for key in (VERSION_KEY, TYPE_KEY)}

    def layout(self, tensors: Sequence[TensorEntry], file_type: int | None = None) -> Layout:
        """Lay out a file.

        Args:
            file_type: of llama-quantize; None: the file is the converter's own.
        """
        packed = self._packed if file_type is None else self._requantized(file_type)
        listed, offsets, end = io.BytesIO(), {}, 0
        for tensor in tensors:
            listed.write(_entry(tensor, end))
            offsets[tensor.name] = end
            end = _padded(end + tensor.bytes)
        header = COUNTS.pack(b"GGUF", gguf.GGUF_VERSION, len(tensors), self._count) + packed
        header += listed.getvalue()
        header += bytes(_padded(len(header)) - len(header))
        return Layout(header, {name: len(header) + each for name, each in offsets.items()}, len(header) + end)

    def _requantized(self, file_type: int) -> bytes:
        packed = self._packed
        for key, value in self._types.items():
            packed = packed.replace(_number(key, value), b"", 1)
        return packed + _number(VERSION_KEY, gguf.GGML_QUANT_VERSION) + _number(TYPE_KEY, file_type)


def _packed_array(value: Any) -> bytes | None:
    """What the writer makes of an array, where it calls itself for each value; None: it is to be asked."""
    if value.type is not gguf.GGUFValueType.ARRAY or value.sub_type is not None:
        return None
    values, types = value.value, set(map(type, value.value))
    if types <= {str, bytes}:
        kind = gguf.GGUFValueType.STRING
        encoded = [each.encode() if isinstance(each, str) else each for each in values]
        packed = b"".join(part for each in encoded for part in (len(each).to_bytes(8, "little"), each))
    elif types == {float}:
        kind, packed = gguf.GGUFValueType.FLOAT32, struct.pack(f"<{len(values)}f", *values)
    elif all(issubclass(each, int) and each is not bool for each in types):
        kind, packed = gguf.GGUFValueType.INT32, struct.pack(f"<{len(values)}i", *values)
    else:
        return None
    return ARRAY.pack(gguf.GGUFValueType.ARRAY, kind, len(values)) + packed


def _number(key: str, value: int) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", UINT32, value)


def _entry(tensor: TensorEntry, offset: int) -> bytes:
    name = tensor.name.encode()
    shape = tensor.shape[::-1]  # the fastest first
    return struct.pack(
        f"<Q{len(name)}sI{len(shape)}QIQ", len(name), name, len(shape), *shape, tensor.kind, offset
    )


def _padded(size: int) -> int:
    alignment = int(gguf.GGUF_DEFAULT_ALIGNMENT)
    return -(-size // alignment) * alignment
