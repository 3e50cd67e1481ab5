"""The pass itself: a base's rows, merged, encoded for each asked file, and written where they belong.

A pool of threads takes chunks of rows; each chunk is read once for all files. What is held is a few chunks a
thread, whatever the model's size: torch, ggml and the file system all work outside Python's lock.
"""

import contextlib
import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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

# Of fp32, 1 MiB: with the delta and what is read and written beside it, a chunk stays in a core's cache.
CHUNK_ELEMENTS = 256 * 1024
CHUNKS_AHEAD = 2  # of each thread
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
                    self._failed.set()  # what waits in the pool is not begun
                    raise

    def _stream(self, pool: ThreadPoolExecutor, tensors: list[StoredTensor], progress: Progress) -> None:
        total = sum(tensor.rows * tensor.columns for tensor in tensors)
        done, running = 0, set[Future[None]]()
        for tensor in tensors:
            read = tensor.open()
            for start, stop in _chunks(tensor):
                while len(running) >= self._threads * (1 + CHUNKS_AHEAD):
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    _raise_first(ended)
                running.add(pool.submit(self._chunk, tensor, read, start, stop))
            done += tensor.rows * tensor.columns
            progress(done, total)
        _raise_first(wait(running).done)

    def _chunk(self, tensor: StoredTensor, read: ReadStored, start: int, stop: int) -> None:
        if self._failed.is_set():
            return
        with torch.inference_mode():
            rows = read(start, stop)
            values = None
            for target, descriptor in zip(self._targets, self._descriptors, strict=True):
                kind = target.kinds[tensor.name]
                if target.is_checked:
                    self._ggml.check(rows.stored, tensor.kind.name)
                encoded = rows.stored
                if kind != tensor.kind:
                    values = rows.values() if values is None else values
                    encoded = self._encoder.encode(values, kind.name)
                row_bytes = encoded.nbytes // (stop - start)
                offset = target.layout.offsets[tensor.name] + start * row_bytes
                _write(descriptor, np.ascontiguousarray(encoded).data.cast("B"), offset)


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed: chunks come and go, and their pages would be fetched anew each time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _chunks(tensor: StoredTensor) -> Iterator[tuple[int, int]]:
    """Ranges of rows, of about one size. The last is no sliver: one row alone is multiplied otherwise."""
    each = max(1, CHUNK_ELEMENTS // tensor.columns)
    count = max(1, round(tensor.rows / each))
    edges = [tensor.rows * position // count for position in range(count + 1)]
    yield from itertools.pairwise(edges)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _raise_first(ended: set[Future[None]]) -> None:
    for future in ended:
        future.result()
