"""A GGUF file's header, read by us before any other parser sees the file.

Parsers in C have had overflows from counts, sizes and offsets that a file only claims. Here each is held
against the file's true size before anything is read or allocated for it; arrays are walked over, not kept.
What comes out is a file whose tensors lie one after the other, each inside it.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, and gguf.cpp for what llama.cpp demands.
"""

import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from db.errors import InvalidInput
from serving.model_formats import HEAD_BYTES, kind_of

HEADER_MAX_BYTES = 256 * 1024**2  # the largest vocabularies take about 20 MB
PAIRS_MAX = 10_000
TENSORS_MAX = 100_000
KEY_MAX_BYTES = 65_535
NAME_MAX_BYTES = 63
STRING_MAX_BYTES = 8 * 1024**2  # a chat template is the longest that is kept
ELEMENTS_MAX = 8_000_000
DIMENSIONS_MAX = 4
ALIGNMENT_MAX = 65_536
DEFAULT_ALIGNMENT = 32
DEFAULT_CONTEXT = 2048

STRING, ARRAY = 8, 9
SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """An array that was walked over: where its elements begin, their type and number."""

    start: int
    type: int
    count: int


@dataclass
class Header:
    """What a GGUF file says of itself. `types` counts its tensors by how they are stored; its pairs, and what
    it says of its tensors, end before the bytes `pairs_end` and `tensors_end`."""

    version: int
    alignment: int = DEFAULT_ALIGNMENT
    metadata: dict[str, Any] = field(default_factory=dict)
    types: Counter[str] = field(default_factory=Counter)
    special_tokens: dict[str, str] = field(default_factory=dict)
    pairs_end: int = 0
    tensors_end: int = 0

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def context_length(self) -> int:
        length = self.metadata.get(f"{self.architecture}.context_length")
        return length if isinstance(length, int) and length > 0 else DEFAULT_CONTEXT

    @property
    def chat_template(self) -> str | None:
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    @property
    def quantization(self) -> str:
        """As the file says it, or else what most of its tensors are stored in."""
        try:
            name = LlamaFileType(self.metadata.get("general.file_type")).name
        except ValueError:
            return self.types.most_common(1)[0][0]
        return str(name).removeprefix("MOSTLY_").removeprefix("ALL_")


def read_header(path: Path, name: str, *, param: str = "source") -> Header:
    """Read and check the header of a GGUF file.

    Args:
        name: what its owner calls the file.
    Raises:
        InvalidInput: it is no GGUF, an old format, not whole, or claims what cannot be.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        kind_of(file.read(HEAD_BYTES), name, param=param)
        try:
            header = _Reader(file, size).header()
        except _Broken as error:
            raise InvalidInput(f"{name} is no sound GGUF: {error}.", param=param, code="bad_gguf") from None
    return header


class _Broken(Exception):
    pass


class _Reader:
    """Reads from a file, never beyond its end or `HEADER_MAX_BYTES`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._end = min(size, HEADER_MAX_BYTES)
        self._at = 4
        file.seek(4)

    def header(self) -> Header:
        header = Header(version=self._scalar(4))
        tensors, pairs = self._scalar(10), self._scalar(10)
        if not 0 < tensors <= TENSORS_MAX:
            raise _Broken(f"it claims {tensors} tensors; from 1 to {TENSORS_MAX} are taken")
        if pairs > PAIRS_MAX:
            raise _Broken(f"it claims {pairs} metadata pairs; at most {PAIRS_MAX} are taken")
        for _ in range(pairs):
            self._pair(header.metadata)
        header.pairs_end = self._at
        self._check_metadata(header)
        self._tensors(header, tensors)
        header.tensors_end = self._at
        header.special_tokens = self._special_tokens(header.metadata)
        return header

    def _pair(self, metadata: dict[str, Any]) -> None:
        key = self._text(KEY_MAX_BYTES, "a key")
        if not key or key in metadata:
            raise _Broken(f"the key {key[:80]!r} is empty or comes twice")
        metadata[key] = self._value(self._scalar(4), key)

    def _value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self._text(STRING_MAX_BYTES, key[:80])
        if kind != ARRAY:
            return self._scalar(kind)
        element, count = self._scalar(4), self._scalar(10)
        if count > ELEMENTS_MAX:
            raise _Broken(f"{key[:80]} claims {count} elements; at most {ELEMENTS_MAX} are taken")
        array = Array(self._at, element, count)
        if element == STRING:
            for _ in range(count):
                self._skip(self._scalar(10))
        elif element in SCALARS:
            self._skip(count * struct.calcsize(SCALARS[element]))
        else:
            raise _Broken(f"{key[:80]} is an array of the unknown type {element}")
        return array

    def _check_metadata(self, header: Header) -> None:
        metadata = header.metadata
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise _Broken("it names no general.architecture")
        header.alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        alignment = header.alignment
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= ALIGNMENT_MAX
            or alignment & (alignment - 1)
        ):
            raise _Broken(f"general.alignment is {alignment!r}, and must be a power of two")
        parts = metadata.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise _Broken(f"it is one of {parts} parts: join them first with llama-gguf-split --merge")

    def _tensors(self, header: Header, count: int) -> None:
        names: set[str] = set()
        following = 0
        for _ in range(count):
            name = self._text(NAME_MAX_BYTES, "a tensor's name")
            if not name or name in names:
                raise _Broken(f"the tensor {name!r} has no name or comes twice")
            names.add(name)
            kind, size = self._shape(name)
            offset = self._scalar(10)
            # llama.cpp demands it as well: no two can overlap, and no gap hides anything.
            if offset != following:
                raise _Broken(f"{name} is at {offset}, and not where the one before it ends, at {following}")
            following = aligned(offset + size, header.alignment)
            header.types[kind] += 1
            last = offset + size
        needed = aligned(self._at, header.alignment) + last
        if needed > self._size:
            raise _Broken(f"its tensors end at byte {needed}, and the file at {self._size}: it is not whole")

    def _shape(self, name: str) -> tuple[str, int]:
        """How a tensor is stored, and its size in bytes."""
        dimensions = self._scalar(4)
        if not 0 < dimensions <= DIMENSIONS_MAX:
            raise _Broken(f"{name} has {dimensions} dimensions; from 1 to {DIMENSIONS_MAX} are taken")
        shape = [self._scalar(10) for _ in range(dimensions)]
        number = self._scalar(4)
        try:
            kind = GGMLQuantizationType(number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError):
            raise _Broken(f"{name} is stored in the unknown type {number}") from None
        elements = 1
        for width in shape:
            elements *= width
            if width == 0 or elements > 8 * self._size * block:
                raise _Broken(f"{name} claims the shape {shape}, which the file cannot hold")
        if shape[0] % block:
            raise _Broken(f"{name}: its rows of {shape[0]} are no blocks of {block}, as {kind.name} has them")
        return kind.name, elements // block * block_bytes

    def _special_tokens(self, metadata: dict[str, Any]) -> dict[str, str]:
        """The tokens that templates call by name."""
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, Array) or tokens.type != STRING:
            return {}
        wanted = {
            metadata.get(f"tokenizer.ggml.{name}_token_id"): f"{name}_token"
            for name in ("bos", "eos", "unknown")
        }
        found = {}
        self._at = tokens.start
        self._file.seek(tokens.start)
        for number in range(
            min(tokens.count, 1 + max((n for n in wanted if isinstance(n, int)), default=-1))
        ):
            if number in wanted:
                found[wanted[number]] = self._text(STRING_MAX_BYTES, "a token")
            else:
                self._skip(self._scalar(10))
        return found

    def _scalar(self, kind: int) -> Any:
        form = SCALARS.get(kind)
        if form is None:
            raise _Broken(f"a value is of the unknown type {kind}")
        raw = self._bytes(struct.calcsize(form))
        return raw[0] != 0 if kind == 7 else struct.unpack(form, raw)[0]

    def _text(self, most: int, what: str) -> str:
        length = self._scalar(10)
        if length > most:
            raise _Broken(f"{what} claims {length} bytes; at most {most} are taken")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError:
            raise _Broken(f"{what} is no UTF-8") from None

    def _bytes(self, count: int) -> bytes:
        self._check(count)
        raw = self._file.read(count)
        if len(raw) != count:
            raise _Broken("it ends in the middle of its header")
        self._at += count
        return raw

    def _skip(self, count: int) -> None:
        self._check(count)
        self._file.seek(count, 1)
        self._at += count

    def _check(self, count: int) -> None:
        if self._at + count > self._end:
            reason = "it ends in the middle of its header"
            if self._end < self._size:
                reason = f"its header is longer than {HEADER_MAX_BYTES} bytes"
            raise _Broken(reason)


def aligned(place: int, alignment: int) -> int:
    return -(-place // alignment) * alignment
