"""Fetch a model that is already made, and check it before anything else reads it.

From an upload or a hub comes a GGUF file, which is served as it is, or a folder of safetensors, which is
converted and quantised as an export is and can be a base of others. What Ollama's library has is pulled by
Ollama, and stays there.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.errors import InvalidInput
from db.params.values import PromptFormatName
from serving.backends.prompt_formats import FORMATS, PromptFormat
from serving.gguf_header import Header, read_header
from serving.gguf_template import TEMPLATE_KEY, write_with_chat_template
from serving.llama_cpp import require_tools
from serving.model_formats import HEAD_BYTES, PICKLES, kind_of
from training_data.tokens import read_template
from worker.step import Step
from worker.steps.base_model import (
    CONFIG_FILES,
    NOT_FETCHED,
    WEIGHT_FILES,
    check_weights,
    context_length,
)
from worker.steps.export import export_weights
from worker.steps.gguf_files import architecture, place, write_tokenizer
from worker.steps.gptq import stored_in
from worker.steps.hub import Hub, Repository
from worker.steps.merging import Weights, link_weights, write_merged
from worker.steps.model_archive import unpack
from worker.steps.pull_ollama import pull_from_ollama
from worker.steps.runtime import memory_errors_explained, prepare_runtime, require_disk

PARAM = "source"
NAMES_SHOWN = 12
MEMORY_ADVICE = "Converting holds one tensor after the other: use a machine with more memory."


def run(step: Step) -> dict[str, Any]:
    """Leave the files that will be served, and say where they come from."""
    source = step.input.params["source"]
    if source["ollama"] is not None:
        return pull_from_ollama(step, source["ollama"])
    if source["file"] is not None:
        return _uploaded(step, source["file"])
    return _from_hub(step, source)


def _uploaded(step: Step, file_id: str) -> dict[str, Any]:
    file = step.input.files[file_id]
    with file.path.open("rb") as opened:
        kind = kind_of(opened.read(HEAD_BYTES), file.filename, param=PARAM)
    about = {"file": file_id, "filename": file.filename}
    if kind == "gguf":
        return _gguf(step, file.path, file.filename, about)
    unpacked = step.input.folder / "unpacked"
    unpack(step, file.path, file.filename, unpacked)
    result = _safetensors(step, unpacked, file.filename, about)
    shutil.rmtree(unpacked)
    return result


def _from_hub(step: Step, source: dict[str, Any]) -> dict[str, Any]:
    hub = Hub(step.input.settings, param=PARAM, step=step)
    found = hub.look_up(source["hub"], source["revision"])
    step.event(
        f"{found.name} at {source['revision'] or 'its newest revision'} is commit {found.revision}.",
        repository=found.name,
        revision=found.revision,
    )
    about = {"hub": found.name, "revision": found.revision}
    filename = source["filename"] or _only_gguf(found)
    if filename is not None:
        if filename not in found.files:
            raise _refused(f"{found.name} has no {filename}. It has: {_listed(_ggufs(found))}.")
        path = hub.folder(found.name, found.revision, [filename]) / filename
        return _gguf(step, path.resolve(), filename, {**about, "filename": filename})
    fetched = hub.folder(found.name, found.revision, [*CONFIG_FILES, *WEIGHT_FILES], ignored=NOT_FETCHED)
    return _safetensors(step, fetched, found.name, about)


def _only_gguf(found: Repository) -> str | None:
    """The GGUF file that is meant where none is named; None where there are safetensors to be had.

    Raises:
        InvalidInput: there is neither, or more than one.
    """
    ggufs = _ggufs(found)
    if any(name.endswith(".safetensors") and "/" not in name for name in found.files):
        return None
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise _refused(f"{found.name} has several GGUF files: name one as filename. {_listed(ggufs)}.")
    pickles = [name for name in found.files if name.lower().endswith(PICKLES)]
    if pickles:
        raise _refused(
            f"{found.name} has its weights as pickles only ({pickles[0]}), which can run code when they are "
            "loaded: ask its makers for safetensors, or take a GGUF of it."
        )
    raise _refused(f"{found.name} holds neither safetensors nor a GGUF file.")


def _ggufs(found: Repository) -> list[str]:
    return sorted(name for name in found.files if name.endswith(".gguf"))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(names[:NAMES_SHOWN]) or "none") + more


def _gguf(step: Step, path: Path, name: str, about: dict[str, Any]) -> dict[str, Any]:
    header = read_header(path, name, param=PARAM)
    target = step.input.folder / f"{step.input.params['name']}-{header.quantization}.gguf"
    template, prompted = _place_with_template(step, path, name, header, target)
    sha256, size = file_sha256(target), target.stat().st_size
    step.event(
        f"{name} is a {header.architecture} in GGUF v{header.version}, {header.quantization}: "
        f"{sum(header.types.values())} tensors, {size / 1e6:.1f} MB.",
        architecture=header.architecture,
        quantization=header.quantization,
        bytes=size,
        sha256=sha256,
    )
    step.artifact(target.name)
    row = {"quantization": header.quantization, "path": target.name, "bytes": size, "sha256": sha256}
    return {
        "files": [row],
        "context_length": header.context_length,
        "architecture": header.architecture,
        "chat_template": template,
        "special_tokens": header.special_tokens,
        "stops": _stops(prompted),
        "folder": None,
        "source": {**about, "format": "gguf"},
    }


def _place_with_template(
    step: Step, path: Path, name: str, header: Header, target: Path
) -> tuple[str | None, PromptFormat | None]:
    """Make `target` the file with a chat template; returns that, and its format if it is one of ours."""
    prompted = _format_for(step, name, has_template=header.chat_template is not None)
    if prompted is not None and TEMPLATE_KEY not in header.metadata:
        require_disk(target.parent, path.stat().st_size, "A copy of the model with a chat template")
        write_with_chat_template(path, target, header, prompted.template())
        return prompted.template(), prompted
    if header.chat_template is None:
        step.event(
            f"{name} carries no chat template: its server makes one up (ChatML), which a model that learnt "
            "another one answers badly. prompt_format gives it one.",
            level="warn",
        )
    place(path, target)
    return header.chat_template, None


def _format_for(step: Step, name: str, *, has_template: bool) -> PromptFormat | None:
    """The asked prompt format, if the model has use for it."""
    asked: PromptFormatName | None = step.input.params["prompt_format"]
    if asked is None:
        return None
    if has_template:
        step.event(f"{name} brings a chat template of its own, which is kept: {asked!r} is not needed.")
        return None
    step.event(f"{name} brings no chat template: it gets that of the prompt format {asked!r}.")
    return FORMATS[asked]


def _stops(prompted: PromptFormat | None) -> list[str]:
    return list(prompted.stops) if prompted is not None else []


def _safetensors(step: Step, source: Path, name: str, about: dict[str, Any]) -> dict[str, Any]:
    """Convert and quantise a folder in Hugging Face's layout; `model/` stays as a base for others."""
    prepare_runtime(step.input.settings.threads)
    check_weights(source, name, PARAM, quantized_too=True)
    stored = stored_in(source)
    folder = step.input.folder / "model"
    with memory_errors_explained(MEMORY_ADVICE):
        if stored is None:
            write_merged(Weights(source), folder)
        else:
            link_weights(source, folder)
        prompted = _format_for(step, name, has_template=not read_template(source)[1].startswith("lathe:"))
        template = write_tokenizer(source, folder, prompted.template() if prompted is not None else None)
        files: list[dict[str, Any]] = []  # of a quantised one: those of adapters on its 16-bit model
        if stored is None:
            files = export_weights(step, require_tools(step.input.settings), Weights(folder), folder)
    return {
        "files": files,
        "context_length": context_length(folder),
        "architecture": architecture(folder),
        "chat_template": template,
        "stops": _stops(prompted),
        "folder": folder.name,
        "source": {**about, "format": "safetensors"},
        **({"stored": asdict(stored)} if stored is not None else {}),
    }


def _refused(message: str) -> InvalidInput:
    return InvalidInput(message, param=PARAM)
