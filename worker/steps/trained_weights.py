"""The trained weights as the trainer left them: the 16-bit base with the adapter beside it, never merged.

So whatever merging, converting or quantising does wrong shows against them. Of some matrices a few rows are
kept, and what the adapter adds to them, by which a file's own rows are judged (`gguf_check`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.steps.base_model import weight_files
from worker.steps.gptq import stored_config

if TYPE_CHECKING:
    import torch

FREE_MEMORY_SHARE = 0.5  # how much of the free memory weights in fp32 may take
GPU_MEMORY_SHARE = 0.8  # and how much of a GPU's, weights as they are stored; else they run on the CPU
ROWS_OF_A_MATRIX = 64  # of a matrix of 4,096 columns, a quarter of a million weights
MATRICES = 16


@dataclass(frozen=True)
class SampledMatrix:
    """Some rows of one matrix, fp32 on the CPU.

    Args:
        name: of the module, as the base names it.
        rows: their indices.
        base: (rows, in) of the base, or of a whole model that was trained, as 16 bits hold them.
        columns: (rows, in), the matrix's columns of these indices; None where it is not square.
        added: (rows, in), what of the adapter's changes 16 bits hold, so that base + added is what merging
            makes, to the bit; None where there is no adapter. Of a change that is smaller than half a step of
            the base's dtype nothing is left.
    """

    name: str
    rows: list[int]
    base: "torch.Tensor"
    columns: "torch.Tensor | None"
    added: "torch.Tensor | None"


@contextmanager
def trained_weights(folder: Path, adapter: Path | None = None) -> Iterator[Any]:
    """Load weights to run rows through; on the GPU when they fit there, in fp32 where that fits.

    Args:
        folder: a whole model, or the base, which may be stored by GPTQ or AWQ.
        adapter: what was trained on the base, if that is so.
    """
    import torch
    from transformers import AutoModelForCausalLM

    device, dtype = _place(folder)
    stored = stored_config(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **({"quantization_config": stored} if stored is not None else {}),
    )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    try:
        yield model.to(device).eval()
    finally:
        del model
        if device == "cuda":
            torch.cuda.empty_cache()  # llama-server, another process, needs what torch would hold back


def sample_matrices(model: Any, dtype: Any) -> list[SampledMatrix]:
    """Take rows of some matrices, from all over the model; of a LoRA, only of those that it adapts.

    The model cannot be asked afterwards: each matrix is merged, to know what that adds to it.

    Args:
        dtype: of 16 bits, to which merged weights are rounded.
    """
    import torch

    modules = {name: module for name, module in model.named_modules() if _is_matrix(module)}
    adapted = {name: each for name, each in modules.items() if _is_adapted(each)}
    chosen = list((adapted or _inner(modules)).items())
    step = max(1, len(chosen) / MATRICES)
    samples = []
    with torch.no_grad():
        for i in range(min(len(chosen), MATRICES)):
            name, module = chosen[int(i * step)]
            samples.append(_sample(name.removeprefix("base_model.model."), module, dtype))
    return samples


def _sample(name: str, module: Any, dtype: Any) -> SampledMatrix:
    import torch

    count = module.weight.shape[0]
    rows = sorted({int(i * count / ROWS_OF_A_MATRIX) for i in range(ROWS_OF_A_MATRIX)})
    base = _rows(module.weight, rows, dtype)
    columns = _rows(module.weight.T, rows, dtype) if module.weight.shape[1] == count else None
    if not _is_adapted(module):
        return SampledMatrix(name, rows, base, columns, None)
    stored = module.weight.dtype
    module.to(torch.float32)
    module.merge(adapter_names=["default"])
    added = _rows(module.weight, rows, dtype) - base
    module.to(stored)  # one matrix at a time takes more memory
    return SampledMatrix(name, rows, base, columns, added)


def _rows(matrix: "torch.Tensor", rows: list[int], dtype: Any) -> "torch.Tensor":
    """Rows as they are once they are rounded to `dtype`."""
    return matrix[rows].detach().to(dtype).float().cpu()


def _is_matrix(module: Any) -> bool:
    import torch

    return isinstance(getattr(module, "base_layer", module), torch.nn.Linear)


def _is_adapted(module: Any) -> bool:
    """Whether it is a layer of peft, whose import would take seconds where there is no adapter."""
    return hasattr(module, "base_layer")


def _inner(modules: dict[str, Any]) -> dict[str, Any]:
    """Those of the blocks: the output matrix may be the embedding's, which a file need not have twice."""
    return {name: module for name, module in modules.items() if ".layers." in f".{name}"}


def _place(model_folder: Path) -> tuple[str, Any]:
    """The device, and the dtype, that a model is run with: "auto" is the dtype it is stored in."""
    import psutil
    import torch

    stored = sum(path.stat().st_size for path in weight_files(model_folder))
    gpu = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    device = "cuda" if stored < GPU_MEMORY_SHARE * gpu else "cpu"
    free = gpu if device == "cuda" else psutil.virtual_memory().available
    return device, torch.float32 if 2 * stored < FREE_MEMORY_SHARE * free else "auto"
