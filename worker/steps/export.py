"""Make the files that are served: base and adapter merged, as GGUF, quantised to each asked type.

Where an adapter is published alone, a file of it and its base's, if that is not there yet.

A 16-bit file is made only if it was asked for, if an importance matrix is made from it, or if no untuned base
exists that a quantised file could be measured by: then verify looks at the conversion itself.
"""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from db.disk import file_sha256
from db.params.values import quantizations_made
from db.source_files import check_source, trained_source
from serving.llama_cpp import Tools, require_tools
from training_data.tokens import ChatTokenizer
from worker.step import Step, StepInput
from worker.steps.base_model import context_length, fetch_base
from worker.steps.gguf_export import Wanted, make_files, quantize_each
from worker.steps.gguf_files import architecture, describe
from worker.steps.importance import Importance, importance_matrix
from worker.steps.merging import Weights
from worker.steps.runtime import memory_errors_explained, prepare_runtime
from worker.steps.served_files import publishes_adapter

MEMORY_ADVICE = "Merging holds the whole model in 16 bits: use a machine with more memory, or a smaller base."


def run(step: Step) -> dict[str, Any]:
    """Leave `<name>-<quantization>.gguf` for each quantization; of a whole model, its 16-bit file too."""
    prepare_runtime(step.input.settings.threads)
    tools = require_tools(step.input.settings)
    source = check_source(step.input.source) if step.input.source is not None else None
    with memory_errors_explained(MEMORY_ADVICE), TemporaryDirectory(dir=step.input.folder) as work:
        weights, described = weights_of(step), Path(work) / "model"
        template = describe(weights.base, trained_folder(step.input), described)
        about = {"context_length": context_length(described), "architecture": architecture(described)}
        full = weights.gguf_type if is_whole(step.input) else None
        if publishes_adapter(step):
            files = _adapter_alone(step, tools, weights)
        else:
            files = export_weights(step, tools, weights, described, full)
    return {
        "files": files,
        **about,
        "chat_template": template,
        "full": file_name(step, full) if full is not None else None,
        "source": source,
    }


def _adapter_alone(step: Step, tools: Tools, weights: Weights) -> list[dict[str, Any]]:
    # Not for who merges: it brings the client of a server along.
    from worker.steps.adapter_export import check_server, export_adapter

    check_server(step)
    return export_adapter(step, tools, weights)


def export_weights(
    step: Step, tools: Tools, weights: Weights, described: Path, full: str | None = None
) -> list[dict[str, Any]]:
    """Make the file of each asked type; returns them as they are published.

    Args:
        described: folder of the model's configuration and tokenizer.
        full: a type that is made as well, and stays unpublished unless it was asked for.
    """
    started = time.monotonic()
    asked = quantizations_made(step.input.params["quantizations"] or [])
    wanted = dict.fromkeys([*asked, *([full] if full is not None else [])])
    files = {name: step.input.folder / file_name(step, name) for name in wanted}
    job = Wanted(weights, described, files, step.input.params["name"])
    matrix = None
    if step.input.params.get("imatrix"):
        matrix = _make_weighed_files(step, tools, job)
    else:
        make_files(step, tools, job)
    seconds = time.monotonic() - started
    return [_published(step, name, files[name], seconds, matrix) for name in asked]


def _make_weighed_files(step: Step, tools: Tools, wanted: Wanted) -> Importance | None:
    """The matrix is made from a 16-bit file, which goes again unless it is one of those that are wanted."""
    own = wanted.weights.gguf_type
    full = step.input.folder / file_name(step, own)
    make_files(step, tools, replace(wanted, files={own: full}))
    tokenizer = ChatTokenizer(trained_folder(step.input))
    matrix = importance_matrix(step, tools, full, tokenizer, context_length(wanted.described))
    others = {name: path for name, path in wanted.files.items() if name != own}
    quantize_each(step, tools, full, others, imatrix=matrix.file if matrix is not None else None)
    if own not in wanted.files:
        full.unlink()
    return matrix


def file_name(step: Step, quantization: str) -> str:
    return f"{step.input.params['name']}-{quantization}.gguf"


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


def weights_of(step: Step) -> Weights:
    """What was trained, and the base under it, fetched if need be."""
    trained = trained_folder(step.input)
    if is_whole(step.input) or step.input.sixteen_bit_base is None:
        return Weights(trained)
    base = fetch_base(step.input.sixteen_bit_base, step)
    return Weights(base, trained) if is_adapter(trained) else Weights(trained, like=base)


def _published(
    step: Step, quantization: str, path: Path, seconds: float, matrix: Importance | None
) -> dict[str, Any]:
    size = path.stat().st_size
    step.event(
        f"Quantised to {quantization}: {size / 1e6:.1f} MB.",
        quantization=quantization,
        bytes=size,
        seconds=round(seconds, 2),
    )
    step.artifact(path.name)
    return {
        "quantization": quantization,
        "path": path.name,
        "bytes": size,
        "sha256": file_sha256(path),
        **({"imatrix": {"rows": matrix.rows, "tokens": matrix.tokens}} if matrix else {}),
    }
