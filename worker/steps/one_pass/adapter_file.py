"""An adapter as a GGUF file of its own, for a base whose file is served as it is.

llama.cpp's converter lays out the base's matrices, of which only the headers are read, and so tells which of
its tensors each becomes, with which row where: the rows of B come in the same order. What it does to a matrix
beyond that cannot be done to B·A alone, and is refused.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch

from worker.steps.merging import Weights
from worker.steps.one_pass.adapters import Adapter, Delta
from worker.steps.one_pass.base_tensors import read_tensors
from worker.steps.one_pass.converter import lay_out, stored_tensors
from worker.steps.one_pass.encoding import NotEncodable
from worker.steps.one_pass.refusals import NeedsMerging
from worker.steps.one_pass.row_tensors import RowChunks

LORA = "lora"


def write_adapter(weights: Weights, target: Path, name: str) -> None:
    """Write an adapter's matrices in half precision; llama.cpp adds alpha / rank times B·A to the base's.

    Args:
        name: what the file says it is called.

    Raises:
        NeedsMerging: it holds what cannot be added while the base's file stays as it is.
        NeedsThreeSteps: the converter does not know the base's family, or the adapter is of no known form.
        NotEncodable: it holds NaN or infinite values.
    """
    assert weights.adapter is not None  # noqa: S101 - whoever calls this has one
    adapter = Adapter(weights.adapter)
    if adapter.embeddings:
        raise NeedsMerging(f"it changes the embedding {adapter.embeddings[0]}")
    dtype = weights.dtype
    converter = lay_out(weights.base, read_tensors(weights.base, dtype, adapter), dtype, name)
    deltas = {each: _delta(adapter, each) for each in sorted(adapter.names)}
    scalings = {delta.scaling * len(delta.a) for delta in deltas.values()}
    if len(scalings) != 1:
        raise NeedsMerging("its matrices are scaled by more than one number")
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        _write(beside, converter, name, scalings.pop(), _pairs(converter, deltas))
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _delta(adapter: Adapter, name: str) -> Delta:
    delta = adapter.delta(name)
    assert delta is not None  # noqa: S101 - for the type checker
    if delta.magnitude is not None:
        raise NeedsMerging("DoRA scales the base's own rows")
    return delta


def _pairs(converter: Any, deltas: dict[str, Delta]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The name of each tensor of the base's file, with its A (rank, columns) and B (rows, rank)."""
    left = set(deltas)
    for stored in stored_tensors(converter):
        if not isinstance(stored.content, RowChunks):
            continue
        rows = stored.content.tensor
        delta = deltas.get(rows.source.name)
        if delta is not None:
            left.discard(rows.source.name)
            yield stored.name, delta.a, delta.b[rows.order.reshape(-1)]
    if left:
        raise NeedsMerging(f"llama.cpp's converter has {sorted(left)[0]} in another form than by rows")


def _write(
    path: Path,
    converter: Any,
    name: str,
    alpha: float,
    pairs: Iterator[tuple[str, torch.Tensor, torch.Tensor]],
) -> None:
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[converter.model_arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(gguf.Keys.Adapter.TYPE, LORA)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for tensor, a, b in pairs:
        writer.add_tensor(f"{tensor}.lora_a", _stored(a))
        writer.add_tensor(f"{tensor}.lora_b", _stored(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(matrix: torch.Tensor) -> Any:
    """In half precision where its numbers fit there, as they always do."""
    if not matrix.isfinite().all():
        raise NotEncodable("The adapter holds NaN or infinite values: train again at a lower learning rate.")
    half = matrix.half()
    return (half if half.isfinite().all() else matrix.float()).contiguous().numpy()
