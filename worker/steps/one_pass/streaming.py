"""The pass itself: a base's rows, merged, encoded for each asked file, and written where they belong.

Each thread takes one chunk of rows after another; a chunk is read once for all files. What is held is one a
thread, whatever the model's size: torch, ggml and the file system all work outside Python's lock.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch

from worker.steps.one_pass.encoding import Encoder, GgmlEncoder
from worker.steps.one_pass.flushing import flushed_meanwhile
from worker.steps.one_pass.headers import Layout
from worker.steps.one_pass.nameless_files import nameless_file
from worker.steps.one_pass.stored_tensors import ReadStored, StoredTensor

# Chunks of half the size cost a fifth more CPU-seconds by vectors, for what Python does for each; of twice
# the size they gain no more, and one thread has more left to do when the other has none.
CHUNK_ELEMENTS = 512 * 1024
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 32 * 1024**2

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Target:
    """One file to be made.

    Args:
        kinds: the type of each tensor in it.
        is_checked: its tensors are looked through for NaN and infinities, as llama-quantize does.
    """

    path: Path
    layout: Layout
    kinds: Mapping[str, gguf.GGMLQuantizationType]
    is_checked: bool


@dataclass(frozen=True)
class Chunk:
    """Some rows of a tensor, from `start` to `stop`, which `read` reads."""

    tensor: StoredTensor
    read: ReadStored
    start: int
    stop: int


class Streaming:
    """Write some files from one list of tensors.

    Args:
        encoder: makes the blocks; `ggml` looks through the tensors that they are made of.
    """

    def __init__(self, targets: list[Target], encoder: Encoder, ggml: GgmlEncoder, threads: int) -> None:
        self._targets, self._encoder, self._ggml, self._threads = targets, encoder, ggml, threads
        self._descriptors: list[int] = []
        self._failed = threading.Event()

    def run(self, tensors: list[StoredTensor], progress: Progress) -> None:
        """Make the files: all, whole and under their names, or none.

        Raises:
            NotEncodable: a tensor holds what cannot be stored.
            OSError: the disk is full, or cannot be written to.
        """
        torch.set_num_threads(1)  # each of the pool's threads is one
        _keep_freed_memory()
        with contextlib.ExitStack() as stack:
            for target in self._targets:
                descriptor = stack.enter_context(nameless_file(target.path))
                os.ftruncate(descriptor, target.layout.total_bytes)
                _write(descriptor, memoryview(target.layout.header), 0)
                self._descriptors.append(descriptor)
            with flushed_meanwhile(self._descriptors), ThreadPoolExecutor(self._threads) as pool:
                try:
                    self._stream(pool, tensors, progress)
                except BaseException:
                    self._failed.set()  # the others begin no further chunk
                    raise

    def _stream(self, pool: ThreadPoolExecutor, tensors: list[StoredTensor], progress: Progress) -> None:
        chunks = _Shared(_chunks(tensors, progress))
        for thread in [pool.submit(self._take, chunks) for _ in range(self._threads)]:
            thread.result()

    def _take(self, chunks: "_Shared") -> None:
        """What each thread does: one chunk after another, until there are no more or one has failed."""
        try:
            with torch.inference_mode():
                for chunk in chunks:
                    if self._failed.is_set():
                        return
                    self._make(chunk)
        except BaseException:
            self._failed.set()
            raise

    def _make(self, chunk: Chunk) -> None:
        rows, values = chunk.read(chunk.start, chunk.stop), None
        for target, descriptor in zip(self._targets, self._descriptors, strict=True):
            kind = target.kinds[chunk.tensor.name]
            if target.is_checked:
                self._ggml.check(rows.stored, chunk.tensor.kind.name)
            encoded = rows.stored
            if kind != chunk.tensor.kind:
                values = rows.values() if values is None else values
                encoded = self._encoder.encode(values, kind.name)
            row_bytes = encoded.nbytes // (chunk.stop - chunk.start)
            offset = target.layout.offsets[chunk.tensor.name] + chunk.start * row_bytes
            _write(descriptor, np.ascontiguousarray(encoded).data.cast("B"), offset)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: chunks come and go, and their pages would be fetched anew each time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


class _Shared:
    """Chunks that several threads take in turns."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._chunks, self._lock = chunks, threading.Lock()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with self._lock:
            return next(self._chunks)


def _chunks(tensors: list[StoredTensor], progress: Progress) -> Iterator[Chunk]:
    """All tensors' rows in order; tells how far they have been taken."""
    total = sum(tensor.rows * tensor.columns for tensor in tensors)
    done = 0
    for tensor in tensors:
        read = tensor.open()
        for start, stop in itertools.pairwise(_edges(tensor)):
            yield Chunk(tensor, read, start, stop)
        done += tensor.rows * tensor.columns
        progress(done, total)


def _edges(tensor: StoredTensor) -> list[int]:
    """Where chunks of about one size begin. The last is no sliver: one row alone is multiplied otherwise."""
    each = max(1, CHUNK_ELEMENTS // tensor.columns)
    count = max(1, round(tensor.rows / each))
    return [tensor.rows * position // count for position in range(count + 1)]


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
