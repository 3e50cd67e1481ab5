"""Take a published model away from the server that holds it."""

import contextlib
from pathlib import Path
from typing import Protocol

from db.errors import LatheError
from serving.chat_server import ChatSettings
from serving.openai_compatible import LlamaServer
from serving.served_adapters import withdraw


class RemovalSettings(ChatSettings, Protocol):
    """What is needed of `db.settings.Settings`."""

    @property
    def served_models_dir(self) -> Path: ...


def remove_served(settings: RemovalSettings, backend: str, backend_name: str) -> None:
    """Remove a model from its backend. One that is already gone is no error.

    Raises:
        Unavailable: Ollama does not answer, so the model is still there.
    """
    if backend == "ollama":
        from serving.ollama import Ollama  # as in `chat_server`, not for who has none

        with contextlib.closing(Ollama(settings.ollama_url)) as server:
            server.delete(backend_name)
        return
    withdraw(settings.served_models_dir, backend_name)
    # A llama-server that is down finds the file gone when it starts, so that is no error.
    with (
        contextlib.suppress(LatheError),
        LlamaServer(settings.chat_url, api_key=settings.chat_server_key.get_secret_value()) as router,
    ):
        router.forget(backend_name)
