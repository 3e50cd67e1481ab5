"""From a model in Hugging Face's layout to GGUF files: llama.cpp's converter, then llama-quantize."""

import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.llama_cpp import Tools, convert_argv, quantize_argv
from training_data.json_files import read_json, write_json
from training_data.served_templates import served_template, without_generation_tags
from training_data.tokens import read_template
from worker.step import Step
from worker.steps.base_model import copy_tokenizer
from worker.steps.programs import run_program

CONFIG_FILES = ("config.json", "generation_config.json")
TENSOR_OF = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
FALLBACK = re.compile(r"falling back to\s+(\w+)")


@dataclass
class Quantized:
    """What llama-quantize said: `fallbacks` counts tensors that a K-quant did not fit, by type."""

    fallbacks: dict[str, int] = field(default_factory=dict)


def write_tokenizer(source: Path, target: Path, template: str | None = None) -> str:
    """Copy a tokenizer beside merged weights, with the chat template that is served; returns it.

    Args:
        template: in place of the tokenizer's own.
    """
    if source.resolve() != target.resolve():
        copy_tokenizer(source, target)
    template = without_generation_tags(template or read_template(source)[0])
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = read_json(target / "tokenizer_config.json")
    if config.pop("chat_template", None) is not None:  # it would come before the file
        write_json(target / "tokenizer_config.json", config)
    return template


def describe(weights: Path, tokenizer: Path, target: Path, template: str | None = None) -> str:
    """Have all of a model but its weights in a folder; returns the chat template that is served."""
    target.mkdir(parents=True, exist_ok=True)
    for name in CONFIG_FILES:
        if (weights / name).is_file() and weights.resolve() != target.resolve():
            shutil.copyfile(weights / name, target / name)
    return write_tokenizer(tokenizer, target, served_template(template or read_template(tokenizer)[0]))


def convert(
    step: Step, tools: Tools, model: Path, target: Path, dtype: str, *, name: str | None = None
) -> None:
    """Convert a model's folder to one GGUF file of 16 bits.

    Args:
        dtype: f16 or bf16.
        name: what the file says it is called; None: as the folder is.
    """
    argv = convert_argv(tools, model, target, dtype, name)
    run_program(argv, "llama.cpp's converter", _counting(step))


def quantize(
    step: Step, tools: Tools, source: Path, target: Path, quantization: str, *, imatrix: Path | None = None
) -> Quantized:
    """Quantise a 16-bit GGUF file, reporting tensor by tensor; `imatrix` says which columns matter."""
    said = Quantized()

    def on_line(line: str) -> None:
        tensor = TENSOR_OF.match(line)
        if tensor is not None:
            step.progress(int(tensor[1]), int(tensor[2]), unit="tensors")
        fallback = FALLBACK.search(line)
        if fallback is not None:
            kind = fallback[1].upper()
            said.fallbacks[kind] = said.fallbacks.get(kind, 0) + 1

    threads = step.input.settings.threads
    name = imatrix.name if imatrix is not None else None
    argv = quantize_argv(tools, source, target, quantization, threads, imatrix=name)
    run_program(argv, "llama-quantize", on_line, folder=imatrix.parent if imatrix is not None else None)
    return said


def place(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: complete from the moment it has its name.

    A hard link costs nothing; across file systems it is a copy.
    """
    if target.is_file() and target.stat().st_size == source.stat().st_size:
        os.utime(target)  # what is young is not cleared away
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.stem}.{uuid.uuid4().hex}")  # no .gguf: the router passes it by
    try:
        try:
            beside.hardlink_to(source)
        except OSError:
            _copy(source, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 16 * 1024**2)
        writing.flush()
        os.fsync(writing.fileno())


def _counting(step: Step) -> Callable[[str], None]:
    """Report a sign of life for each line, with the bytes written where the line tells them."""
    share = re.compile(r"Writing:\s+(\d+)%")
    so_far = 0

    def on_line(line: str) -> None:
        nonlocal so_far
        written = share.search(line)
        so_far = int(written[1]) if written else so_far
        step.progress(so_far, 100, unit="percent")

    return on_line


def architecture(model: Path) -> str:
    config: dict[str, Any] = read_json(model / "config.json")
    return str((config.get("architectures") or [config.get("model_type", "unknown")])[0])
