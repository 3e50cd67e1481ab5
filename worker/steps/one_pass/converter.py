"""llama.cpp's own converter, given merged tensors in place of a model's files.

It decides names, order, shapes and metadata; it is asked for a 16-bit file, and is stopped before it writes
it. Its modules must be on `sys.path` before this one is imported.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import torch
from conversion import (  # type: ignore[import-not-found]  # theirs, found through sys.path
    LazyTorchTensor,
    ModelBase,
    ModelType,
    get_model_architecture,
    get_model_class,
)

from training_data.json_files import read_json
from worker.steps.one_pass.base_tensors import BaseTensor
from worker.steps.one_pass.refusals import NeedsThreeSteps
from worker.steps.one_pass.row_tensors import RowTensor
from worker.steps.one_pass.start import know_all_shapes
from worker.steps.one_pass.stored_tensors import StoredTensor

FILE_TYPES = {
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
}
OUTPUT = "lm_head.weight"


@dataclass(frozen=True)
class Converted:
    """A 16-bit GGUF file that was not written: its writer with all metadata, and its tensors in order."""

    writer: Any
    tensors: list[StoredTensor]


def convert_lazily(model: Path, tensors: dict[str, BaseTensor], dtype: torch.dtype, name: str) -> Converted:
    """Have the converter make a file's metadata and lay out its tensors; see `lay_out`."""
    converter = lay_out(model, tensors, dtype, name)
    with torch.inference_mode():
        converter.prepare_metadata(vocab_only=False)
    writer = converter.gguf_writer
    if writer.data_alignment != gguf.GGUF_DEFAULT_ALIGNMENT or len(writer.tensors) != 1:
        raise NeedsThreeSteps("the converter lays this model's file out in a way of its own")
    return Converted(writer, stored_tensors(converter))


def lay_out(model: Path, tensors: dict[str, BaseTensor], dtype: torch.dtype, name: str) -> Any:
    """Have the converter name, order and reshape a model's tensors; returns it.

    Args:
        model: folder of config.json and the tokenizer; weights in it are not looked at.
        tensors: the weights, by the names that they have in safetensors.
        dtype: of 16 bits, which the file is asked for in.
        name: what the file says it is called.

    Raises:
        NeedsThreeSteps: the converter writes this family's file in a way of its own, or does not know it.
    """
    _check_family(model)
    try:
        return _laid_out(model, tensors, dtype, name)
    except NotImplementedError:
        if not know_all_shapes():
            raise
        return _laid_out(model, tensors, dtype, name)


def _laid_out(model: Path, tensors: dict[str, BaseTensor], dtype: torch.dtype, name: str) -> Any:
    model_class = _class_of(model)
    given = {key: partial(_lazy, tensor) for key, tensor in tensors.items() if not _is_copy(key, model)}
    with torch.inference_mode(), _given_instead_of_files(given):
        converter = model_class(model, FILE_TYPES[dtype], Path("none.gguf"), model_name=name)
        converter.prepare_tensors()
    return converter


def stored_tensors(converter: Any) -> list[StoredTensor]:
    """What it would write, in order."""
    tensors = converter.gguf_writer.tensors[0].items()
    return [StoredTensor(key, tuple(each.shape), each.dtype, each.tensor) for key, each in tensors]


def _check_family(model: Path) -> None:
    """Names in the files of others (vision, several experts in one) are not those that an adapter has."""
    config = read_json(model / "config.json")
    if "text_config" in config or "quantization_config" in config:
        raise NeedsThreeSteps("the model is more than a language model in 16 bits")
    if not config.get("architectures"):  # as in a checkpoint of a training, which loading the model mends
        raise NeedsThreeSteps("config.json names no architecture")


def _class_of(model: Path) -> Any:
    architecture = get_model_architecture(ModelBase.load_hparams(model, False), ModelType.TEXT)
    try:
        found = get_model_class(architecture)
    except NotImplementedError:
        raise NeedsThreeSteps(f"llama.cpp's converter does not know {architecture}") from None
    if found.write is not ModelBase.write or found.get_tensors is not ModelBase.get_tensors:
        raise NeedsThreeSteps(f"llama.cpp's converter writes {architecture} in a way of its own")
    return found


def _is_copy(name: str, model: Path) -> bool:
    """Whether a file stores the embedding a second time, which loading and saving the model would drop."""
    return name == OUTPUT and bool(read_json(model / "config.json").get("tie_word_embeddings"))


def _lazy(tensor: BaseTensor) -> Any:
    """Matrices by rows; vectors, which are small, as the converter's own lazy tensors."""
    if len(tensor.shape) > 1:
        return RowTensor.of(tensor)
    meta = LazyTorchTensor.meta_with_dtype_and_shape(tensor.dtype, tensor.shape)
    return LazyTorchTensor(meta=meta, args=(tensor,), func=lambda source: source.whole())


@contextmanager
def _given_instead_of_files(given: Mapping[str, Callable[[], Any]]) -> Iterator[None]:
    """Replace the converter's look through the model's files. Subclasses go on to do theirs around it."""

    def index_tensors(self: Any, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
        kept = (self.filter_tensors(item) for item in given.items())
        return {item[0]: item[1] for item in kept if item is not None}

    theirs = ModelBase.index_tensors
    ModelBase.index_tensors = index_tensors
    try:
        yield
    finally:
        ModelBase.index_tensors = theirs
