"""A model of Ollama's library, pulled by the Ollama server that will answer with it.

It is served under a name of our own that holds its digest, as all that is published is: so it belongs to
its project, and a tag that moves on changes nothing.
"""

import contextlib
from typing import Any

from db.errors import InvalidInput
from serving.ollama import Ollama
from worker.step import Step
from worker.steps.publish import backend_name


def pull_from_ollama(step: Step, reference: str) -> dict[str, Any]:
    """Pull, and give it our name; the tag goes again unless it was there before.

    Raises:
        InvalidInput: this Lathe is served by no Ollama, or its library has no such model.
        Unavailable: the server, or the library, does not answer.
    """
    settings = step.input.settings
    if settings.chat_backend != "ollama":
        raise InvalidInput("No Ollama serves this Lathe: OLLAMA_HOST names one.", param="source")
    with contextlib.closing(Ollama(settings.ollama_url)) as server:
        was_there = server.exists(reference)
        for status, done, total in server.pull(reference):
            step.progress(done, total or 1, unit="B" if total else status)
        described = server.describe(reference)
        name = backend_name(step.input.params["name"], described.digest)
        server.copy(reference, name)
        if not was_there:
            server.delete(reference)
    step.event(
        f"Ollama has {reference}: {described.quantization}, {described.bytes / 1e6:.1f} MB, "
        f"digest {described.digest[:12]}.",
        bytes=described.bytes,
        digest=described.digest,
    )
    row = {
        "quantization": described.quantization,
        "path": None,
        "bytes": described.bytes,
        "sha256": described.digest,
        "backend": "ollama",
        "backend_name": name,
    }
    return {
        "files": [row],
        "context_length": described.context_length,
        "architecture": described.family,
        "folder": None,
        "source": {"ollama": reference, "format": "ollama"},
    }
