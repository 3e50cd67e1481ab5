"""Quantise a base model to GPTQ, by gptqmodel (Frantar et al. 2022, arXiv:2210.17323).

What comes of it is a folder in Hugging Face's layout, with safetensors: a base for adapters here, and a model
for whatever else reads GPTQ. It is measured by the next step, in a process of its own.
"""

import json
import shutil
import time
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from db.params.quantize import QuantizeParams
from training_data.json_files import read_json, write_json
from training_data.model_shape import ModelShape
from training_data.stored_quantization import stored_quantization
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.base_model import context_length, copy_tokenizer, fetch_base, shape_of, weight_files
from worker.steps.calibration import Calibration, read_calibration
from worker.steps.gguf_files import architecture
from worker.steps.gptq import require_gptqmodel
from worker.steps.merging import sixteen_bit_dtype
from worker.steps.quantizing_estimate import reckon_quantization, tell_quantization
from worker.steps.runtime import memory_errors_explained, peak_memory_bytes, prepare_runtime

MODEL = "model"
LAYERS = "layers"  # those that are not being worked on
LOGS = "logs"  # gptqmodel's own
JUDGED = "judged.json"  # for the step that measures
PACKED = 32  # outputs that are packed together
MEMORY_ADVICE = "Quantising holds the model in 16 bits: use a machine with more memory, or a smaller base."


def run(step: Step) -> dict[str, Any]:
    """Leave `model/`, and what it is to be measured on."""
    prepare_runtime(step.input.settings.threads)
    import torch

    base = step.input.require_base()
    require_gptqmodel("Quantising to GPTQ")
    started = time.monotonic()
    folder, target = fetch_base(base, step), step.input.folder / MODEL
    shape, params = shape_of(folder), step.input.params
    check_groups(shape, params["group_size"])
    copy_tokenizer(folder, step.input.folder / "tokenizer")
    tokenizer = ChatTokenizer(step.input.folder / "tokenizer")
    rows = read_calibration(step, tokenizer, context_length(folder))
    estimate = reckon_quantization(step, QuantizeParams.model_validate(params), shape, rows)
    tell_quantization(step, estimate)
    estimate.require_fit()
    # It writes a log of its own where it stands.
    with memory_errors_explained(MEMORY_ADVICE), chdir(step.input.folder):
        _quantize(step, folder, target, rows, shape.layers)
    copy_tokenizer(folder, target)
    (step.input.folder / JUDGED).write_text(json.dumps([asdict(row) for row in rows.judged]))
    stored = stored_quantization(read_json(target / "config.json"))
    assert stored is not None  # noqa: S101 - it has just been written
    seconds, size, before = time.monotonic() - started, _size(target), _size(folder)
    step.event(
        f"{base.name} is quantised to {stored}: {size / 1e6:.1f} MB in place of {before / 1e6:.1f} MB "
        f"({seconds:.0f} s).",
        bytes=size,
        bytes_before=before,
        seconds=round(seconds, 2),
    )
    for path in sorted(target.iterdir()):
        step.artifact(path)
    at_commit = {"base_revision": folder.name} if base.source == "hub" else {}
    reference = f"{base.location}@{folder.name}" if base.source == "hub" else base.name
    return {
        "files": [],
        "folder": MODEL,
        "quantized_from": reference,
        "stored": asdict(stored),
        "calibration": {"name": rows.name, "rows": len(rows.rows), "tokens": rows.tokens},
        "held_out": rows.held_out,
        "bytes": size,
        "bytes_before": before,
        "seconds": round(seconds, 2),
        "estimate": estimate.told,
        "peak_memory_bytes": peak_memory_bytes(torch),
        "context_length": context_length(target),
        "architecture": architecture(target),
        **at_commit,
    }


def check_groups(shape: ModelShape, group_size: int) -> None:
    """See that the rows of each matrix can be cut into groups.

    Raises:
        InvalidInput: they cannot.
    """
    for matrix in shape.linear:
        if matrix.inputs % group_size:
            raise InvalidInput(
                f"group_size: {matrix.name} has {matrix.inputs} inputs, which groups of {group_size} do not "
                f"divide: {_fitting(shape)}.",
                param="group_size",
            )
        if matrix.outputs % PACKED:
            raise InvalidInput(
                f"base_model: {matrix.name} has {matrix.outputs} outputs, and GPTQ packs {PACKED} at a time: "
                "this model cannot be stored so.",
                param="base_model",
            )


def _fitting(shape: ModelShape) -> str:
    sizes = [size for size in (128, 64, 32) if all(matrix.inputs % size == 0 for matrix in shape.linear)]
    return f"give {sizes[0]}" if sizes else "this model cannot be stored by GPTQ here"


def _quantize(step: Step, folder: Path, target: Path, rows: Calibration, layers: int) -> None:
    """Let gptqmodel do it, and tell of each layer that is done."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    params = step.input.params
    torch.set_num_threads(step.input.settings.threads)
    config = QuantizeConfig(
        bits=params["bits"],
        group_size=params["group_size"],
        offload_to_disk_path=str(step.input.folder / LAYERS),
    )
    model = GPTQModel.load(str(folder), config, dtype=sixteen_bit_dtype(folder), trust_remote_code=False)
    model.layer_callback = lambda layer_idx, submodule_finalized: step.progress(
        layer_idx + 1, layers, unit="layers"
    )
    model.quantize(
        [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows.rows],
        batch_size=1,
        calibration_data_min_length=1,
    )
    model.save(str(target))
    for name in (LAYERS, LOGS):
        shutil.rmtree(step.input.folder / name, ignore_errors=True)
    _leave_out_this_machine(target)


def _leave_out_this_machine(target: Path) -> None:
    """Others may get the folder: how it was quantised stays in the config, and no path of this machine."""
    config = read_json(target / "config.json")
    meta = config["quantization_config"].get("meta") or {}
    config["quantization_config"]["meta"] = {"quantizer": meta.get("quantizer")}
    write_json(target / "config.json", config)
    for name in ("quantize_config.json", "quant_log.csv"):
        (target / name).unlink(missing_ok=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(folder))
