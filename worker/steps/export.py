"""Make the files that are served: merge the adapter, convert to GGUF, quantise to each asked type.

`merged/` stays for the verify step, which holds the files against it. The 16-bit GGUF in between is
removed unless it was asked for, or no untuned base exists that a quantised file could be measured by: then
verify looks at the conversion itself.
"""

import time
from pathlib import Path
from typing import Any

from db.params.values import quantizations_made
from db.sources import check_source, trained_source
from serving.llama_cpp import Tools, require_tools
from training_data.tokens import ChatTokenizer
from worker.step import Step, StepInput
from worker.steps.base_model import context_length, count_parameters, fetch_base
from worker.steps.gguf_files import architecture, convert, place, quantize, write_tokenizer
from worker.steps.importance import Importance, importance_matrix
from worker.steps.merging import gguf_dtype, has_sixteen_bits, merge_adapter, round_weights
from worker.steps.runtime import memory_errors_explained, prepare_runtime, require_disk
from worker.steps.weights_cache import file_sha256

MEMORY_ADVICE = "Merging holds the whole model in 16 bits: use a machine with more memory, or a smaller base."


def run(step: Step) -> dict[str, Any]:
    """Leave `<name>-<quantization>.gguf` for each quantization, and `merged/`."""
    prepare_runtime(step.input.settings.threads)
    tools = require_tools(step.input.settings)
    source = check_source(step.input.source) if step.input.source is not None else None
    with memory_errors_explained(MEMORY_ADVICE):
        model = merged_weights(step)
        template = write_tokenizer(trained_folder(step.input), model)
        files, full = export_weights(step, tools, model)
    keep_full = is_whole(step.input) or full.name in {row["path"] for row in files}
    if not keep_full:
        full.unlink()
    return {
        "files": files,
        "context_length": context_length(model),
        "architecture": architecture(model),
        "chat_template": template,
        "merged": "merged",
        "full": full.name if keep_full else None,
        "source": source,
    }


def export_weights(step: Step, tools: Tools, model: Path) -> tuple[list[dict[str, Any]], Path]:
    """Convert weights of 16 bits, and quantise them to each asked type.

    Returns:
        the files, as they are published, and the 16-bit one, which need not be among them.
    """
    full, dtype = _convert(step, tools, model)
    matrix = None
    if step.input.params.get("imatrix"):
        tokenizer = ChatTokenizer(trained_folder(step.input))
        matrix = importance_matrix(step, tools, full, tokenizer, context_length(model))
    return [_file(step, tools, full, dtype, name, matrix=matrix) for name in _quantizations(step)], full


def take_weights(step: Step, source: Path, target: Path, *, like: Path | None = None) -> None:
    """Have the weights of a whole model in 16 bits in `target`, if the disk has room for what follows.

    Args:
        like: a model whose kind of 16 bits is taken where the source has none of its own.
    """
    _require_disk(step, source, copies=1)
    if has_sixteen_bits(source):
        _link_weights(source, target)
    else:
        round_weights(source, target, like=like or source)  # a checkpoint's are as they are trained


def _quantizations(step: Step) -> list[str]:
    return quantizations_made(step.input.params["quantizations"] or [])


def is_whole(step_input: StepInput) -> bool:
    """Whether a whole model was trained, which no untuned base stands beside; else it is an adapter."""
    return step_input.base is None or step_input.kind == "pretrain"


def trained_folder(step_input: StepInput) -> Path:
    """What the training left: a whole model, or an adapter; the training tokenizer is in both."""
    if step_input.source is not None:
        return trained_source(step_input.source)
    folder = step_input.step_folders["train"]
    return folder / "adapter" if (folder / "adapter").is_dir() else folder / "model"


def is_adapter(trained: Path) -> bool:
    return (trained / "adapter_config.json").is_file()


def merged_weights(step: Step) -> Path:
    """The 16-bit weights as `merged/`: merged with the adapter, or a copy where all were trained."""
    target, trained = step.input.folder / "merged", trained_folder(step.input)
    if is_whole(step.input) or step.input.base is None:
        take_weights(step, trained, target)
        return target
    base = fetch_base(step.input.base, step)
    if not is_adapter(trained):
        take_weights(step, trained, target, like=base)
        return target
    started = time.monotonic()
    _require_disk(step, base, copies=2)
    merge_adapter(base, trained, target)
    seconds = time.monotonic() - started
    step.event(
        f"Merged the adapter into {step.input.base.name} in fp32 ({seconds:.1f} s).",
        seconds=round(seconds, 2),
        dtype=gguf_dtype(target),
    )
    return target


def _require_disk(step: Step, weights: Path, *, copies: int) -> None:
    """See that there is room for `copies` of the weights in 16 bits, and for each quantisation of them.

    Raises:
        Exhausted: there is not.
    """
    bits = 16 * copies + sum(8.5 if name == "Q8_0" else 6.6 for name in _quantizations(step))
    require_disk(step.input.folder, int(count_parameters(weights) * bits / 8), "This")


def _link_weights(source: Path, target: Path) -> None:
    """Share the files of an earlier attempt: weights are never changed in place."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            place(path.resolve(), target / path.name)
        elif path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


def _convert(step: Step, tools: Tools, model: Path) -> tuple[Path, str]:
    """Convert to a GGUF file of the weights' own 16 bits; returns it and its type."""
    dtype = gguf_dtype(model).upper()
    full = step.input.folder / f"{step.input.params['name']}-{dtype}.gguf"
    started = time.monotonic()
    convert(step, tools, model, full, dtype.lower())
    seconds = time.monotonic() - started
    step.event(
        f"Converted to GGUF: {full.stat().st_size / 1e6:.1f} MB in {seconds:.1f} s.",
        bytes=full.stat().st_size,
        seconds=round(seconds, 2),
    )
    return full, dtype


def _file(
    step: Step, tools: Tools, full: Path, dtype: str, quantization: str, *, matrix: Importance | None
) -> dict[str, Any]:
    path = step.input.folder / f"{step.input.params['name']}-{quantization}.gguf"
    if quantization != dtype:
        started = time.monotonic()
        said = quantize(step, tools, full, path, quantization, imatrix=matrix.file if matrix else None)
        seconds = time.monotonic() - started
        size = path.stat().st_size
        step.event(
            f"Quantised to {quantization}: {size / 1e6:.1f} MB in {seconds:.1f} s.",
            quantization=quantization,
            bytes=size,
            seconds=round(seconds, 2),
        )
        if said.fallbacks:
            others = ", ".join(f"{count} as {kind}" for kind, count in sorted(said.fallbacks.items()))
            step.event(
                f"Some tensors do not fit {quantization}, whose blocks are 256 wide, and were stored "
                f"with more bits: {others}.",
                level="warn",
                quantization=quantization,
                fallbacks=said.fallbacks,
            )
    step.artifact(path.name)
    return {
        "quantization": quantization,
        "path": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        **({"imatrix": {"rows": matrix.rows, "tokens": matrix.tokens}} if matrix else {}),
    }
