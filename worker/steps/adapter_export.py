"""Export of an adapter alone: its file, and files of its base in each type, which all its adapters share."""

import time
from typing import Any

from db.disk import file_sha256
from db.errors import InvalidInput, Unavailable
from db.params.values import quantizations_made
from serving.llama_cpp import Tools
from serving.ollama import Ollama
from worker.step import Step
from worker.steps.gguf_export import run_export
from worker.steps.merging import Weights
from worker.steps.served_files import base_of_adapter

TAKES_NO_ADAPTERS = (
    'Ollama takes no adapters from version 0.34 on: publish "merged", or serve by llama-server (leave '
    "OLLAMA_HOST out)."
)
OLLAMA_WITHOUT = (0, 34)


def export_adapter(step: Step, tools: Tools, weights: Weights) -> list[dict[str, Any]]:
    """Leave `<name>-adapter.gguf`; returns it once for each asked type, with the base's file of that type.

    Raises:
        InvalidInput: this adapter can only be merged.
    """
    started = time.monotonic()
    path = step.input.folder / f"{step.input.params['name']}-adapter.gguf"
    _convert(step, tools, weights, path.name)
    size = path.stat().st_size
    step.event(
        f"The adapter is a file of {size / 1e6:.1f} MB, to be served beside its base's.",
        bytes=size,
        seconds=round(time.monotonic() - started, 2),
    )
    step.artifact(path.name)
    sha256 = file_sha256(path)
    return [
        {
            "quantization": name,
            "path": path.name,
            "bytes": size,
            "sha256": sha256,
            "base": _base(step, tools, name),
        }
        for name in quantizations_made(step.input.params["quantizations"])
    ]


def check_server(step: Step) -> None:
    """See, before anything is trained, that the server takes adapters.

    Raises:
        InvalidInput: it does not.
    """
    settings = step.input.settings
    if settings.chat_backend != "ollama":
        return
    server = Ollama(settings.ollama_url)
    try:
        version = server.version()
    except Unavailable:
        return  # publishing waits for it, and tells
    finally:
        server.close()
    if version >= OLLAMA_WITHOUT:
        raise InvalidInput(f"publish: {TAKES_NO_ADAPTERS}", param="publish", code="adapters_not_served")


def _convert(step: Step, tools: Tools, weights: Weights, name: str) -> None:
    if tools.convert is None or tools.python is None:
        raise Unavailable(
            f"The llama.cpp in {tools.bin} has no converters: `python llama.cpp/build.py` fetches them.",
            code="llama_cpp_missing",
        )
    argv = ["--adapter-alone", "--out", str(step.input.folder / name)]
    try:
        run_export(step, tools, weights, step.input.params["name"], argv)
    except InvalidInput as error:
        raise InvalidInput(
            f"The adapter cannot be served beside its base's file: {error.message}. Export the job with "
            'publish "merged".',
            param="publish",
            code="adapter_needs_merging",
        ) from error


def _base(step: Step, tools: Tools, quantization: str) -> dict[str, Any]:
    file = base_of_adapter(step, tools, quantization)
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
