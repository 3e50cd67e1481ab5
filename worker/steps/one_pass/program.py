"""What `python -m worker.export` does, once llama.cpp's modules can be imported.

It speaks to whoever started it in lines of JSON on stdout: {"done", "total"} on the way, and at the end
{"files": …}, {"needs_three_steps": why} or {"error": why}.
"""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf

from serving.llama_cpp import Tools
from worker.encoder.choosing import Chosen
from worker.steps.gguf_files import describe
from worker.steps.merging import Weights
from worker.steps.one_pass.adapter_file import write_adapter
from worker.steps.one_pass.adapters import Adapter
from worker.steps.one_pass.base_tensors import read_tensors
from worker.steps.one_pass.converter import Converted, convert_lazily
from worker.steps.one_pass.headers import Layout, Metadata, TensorEntry
from worker.steps.one_pass.plans import Plan, plan_types
from worker.steps.one_pass.refusals import NeedsThreeSteps
from worker.steps.one_pass.streaming import Streaming, Target

SECONDS_BETWEEN_LINES = 0.5


@dataclass(frozen=True)
class Wanted:
    """What is to be exported.

    Args:
        tokenizer: folder of the tokenizer and its chat template.
        described: folder of the tokenizer and config.json; None: it is put together for the time.
        name: what the files say they are called.
        files: the file of each quantization.
    """

    weights: Weights
    tokenizer: Path
    described: Path | None
    name: str
    files: Mapping[str, Path]
    threads: int


def export(tools: Tools, wanted: Wanted, chosen: Chosen | None) -> dict[str, Any]:
    """Make the files in one pass.

    Args:
        chosen: what encodes; None: the llama.cpp cannot be called for that.

    Returns:
        for each quantization, its size and how many tensors fell back to another type; and how it was done.

    Raises:
        NeedsThreeSteps: it cannot be done so.
    """
    if chosen is None:
        raise NeedsThreeSteps(f"the llama.cpp in {tools.bin} has no shared libggml-base")
    started = time.monotonic()
    weights, dtype = wanted.weights, wanted.weights.dtype
    adapter = Adapter(weights.adapter) if weights.adapter is not None else None
    tensors = read_tensors(weights.base, dtype, adapter)
    with ExitStack() as stack:
        model = wanted.described or _described(stack, wanted)
        converted = convert_lazily(model, tensors, dtype, wanted.name)
    plans, targets = _targets(tools, wanted, converted)
    prepared = time.monotonic()
    Streaming(targets, chosen.encoder, chosen.ggml, wanted.threads).run(converted.tensors, _Reported())
    return {
        "files": {
            quantization: {"bytes": path.stat().st_size, "fallbacks": plans[quantization].fallbacks}
            for quantization, path in wanted.files.items()
        },
        "encoder": chosen.said,
        "seconds": {
            "prepare": round(prepared - started, 3), "stream": round(time.monotonic() - prepared, 3)
        },
    }  # fmt: skip


def export_adapter(weights: Weights, target: Path, name: str) -> dict[str, Any]:
    """Make the file of an adapter alone; returns its size and how long it took.

    Raises:
        NeedsMerging, NeedsThreeSteps: it cannot be served beside its base.
        NotEncodable: it holds NaN or infinite values.
    """
    started = time.monotonic()
    write_adapter(weights, target, name)
    return {"adapter_bytes": target.stat().st_size, "seconds": round(time.monotonic() - started, 3)}


def _described(stack: ExitStack, wanted: Wanted) -> Path:
    # The converter guesses at a model's family from its folder's name, where that has several parts.
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="lathe-export-"))) / "model"
    describe(wanted.weights.base, wanted.tokenizer, folder)
    return folder


def _targets(tools: Tools, wanted: Wanted, converted: Converted) -> tuple[dict[str, Plan], list[Target]]:
    metadata, own_type = Metadata(converted.writer), wanted.weights.gguf_type
    entries = {each.name: TensorEntry(each.name, each.shape, each.kind) for each in converted.tensors}
    own = metadata.layout(list(entries.values()))
    plans, targets = {}, []
    for quantization, path in wanted.files.items():
        if quantization == own_type:  # the converter's own file; llama-quantize never sees it
            plan, layout = Plan({name: entry.kind for name, entry in entries.items()}), own
        else:
            plan = plan_types(tools.quantize, own, quantization, path.parent)
            layout = _quantised_layout(metadata, entries, plan, quantization)
        plans[quantization] = plan
        targets.append(Target(path, layout, plan.kinds, is_checked=quantization != own_type))
    return plans, targets


def _quantised_layout(
    metadata: Metadata, entries: dict[str, TensorEntry], plan: Plan, quantization: str
) -> Layout:
    if plan.kinds.keys() != entries.keys():
        raise NeedsThreeSteps("llama-quantize plans other tensors than the converter gives")
    file_type = int(gguf.LlamaFileType[f"MOSTLY_{quantization}"])
    listed = [TensorEntry(name, entries[name].shape, kind) for name, kind in plan.kinds.items()]
    return metadata.layout(listed, file_type)


class _Reported:
    """Says how far the pass is, at most twice a second."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            say({"done": done, "total": total})


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
