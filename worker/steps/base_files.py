"""Quantised files of bases, made once: `<cache>/base-gguf/<hash of the base>/<quantization>.gguf`.

Fine-tunes are measured by them, and adapters that are published alone are served beside them, by hard links:
an entry that is removed is made again, and takes nothing away from who serves it.
"""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from db.disk import file_sha256
from serving.llama_cpp import Tools
from serving.served_adapters import base_files_folder
from training_data.served_templates import served_template
from training_data.tokens import read_template
from worker.step import Step
from worker.steps.base_model import weight_files
from worker.steps.gguf_export import Wanted, make_files
from worker.steps.gguf_files import describe, place
from worker.steps.merging import Weights


def base_file(
    step: Step, tools: Tools, base: Path, quantization: str, *, wanted: Sequence[str], why: str
) -> Path:
    """Find a base's file, or make it, and with it all that are `wanted`, from one reading of the weights.

    Args:
        why: it is made, for who waits.
    """
    folder = cache_folder(step, base)
    target = folder / f"{quantization}.gguf"
    if target.is_file():
        return target
    missing = [name for name in wanted if not (folder / f"{name}.gguf").is_file()]
    step.event(
        f"Quantising the base model to {', '.join(missing)} as well, {why}; this is done once for each base.",
        quantizations=missing,
    )
    # In the attempt's folder: what is left of a killed one is cleared away with it.
    with tempfile.TemporaryDirectory(prefix="base-", dir=step.input.folder) as work:
        described = Path(work) / "model"
        describe(base, base, described)
        files = {name: Path(work) / f"{name}.gguf" for name in missing}
        make_files(step, tools, Wanted(Weights(base), described, files, base.name))
        for path in files.values():
            place(path, folder / path.name)
    return target


def keep_as_base(step: Step, model: Path, files: dict[str, Path]) -> None:
    """Keep the files of a model made from scratch, which fine-tunes will start from."""
    folder = cache_folder(step, model)
    for quantization, path in files.items():
        place(path, folder / f"{quantization}.gguf")


def cache_folder(step: Step, base: Path) -> Path:
    """By the weights, and by the chat template, which is served with them. To ask is to use it."""
    template = served_template(read_template(base)[0])
    key = hashlib.sha256(f"{weights_hash(base)}\n{template}".encode()).hexdigest()[:24]
    folder = base_files_folder(step.input.settings.cache_dir) / key
    with suppress(FileNotFoundError):
        os.utime(folder)  # what is asked for is not cleared away
    return folder


def weights_hash(folder: Path) -> str:
    """Name a model by the contents of its config, tokenizer and weights."""
    names = [*weight_files(folder), folder / "config.json", folder / "tokenizer.json"]
    lines = [f"{path.name} {file_sha256(path)}" for path in sorted(names) if path.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]
