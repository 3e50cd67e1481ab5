"""The llama-servers that `bench.retrieval` embeds and rewrites with, under the product's own arguments."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.retrieval_collection import Embedder
from bench.retrieval_variants import CONTEXT_TOKENS, SLOTS
from bench.stack import Stack
from db.settings import load_settings
from serving.embedding_model import ensure_embedding_model
from serving.embeddings import EmbeddingServer
from serving.llama_cpp import child_environment, embedding_server_argv, model_server_argv, require_tools
from serving.local_port import free_port

READY_SECONDS = 60


class ModelServers:
    """Started in a stack, and ended with it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._settings = load_settings().model_copy(update={"embedding_port": free_port()})
        self._tools = require_tools(self._settings)

    @contextlib.contextmanager
    def embedder(self) -> Iterator[Embedder]:
        model = ensure_embedding_model(self._tools, self._settings)
        argv = embedding_server_argv(self._tools, self._settings, model)
        url = self._started("embeddings", argv, self._settings.embedding_port)
        with EmbeddingServer(url) as server:
            yield Embedder(server, self._settings.cache_dir / "bench" / "vectors.sqlite")

    def chat(self, model: Path) -> str:
        """Returns: the address of a server for a GGUF file."""
        port = free_port()
        argv = model_server_argv(
            self._tools,
            model,
            port=port,
            threads=self._settings.threads,
            n_gpu_layers=0,
            context=CONTEXT_TOKENS,
            slots=SLOTS,
        )
        return self._started("chat", argv, port)

    def _started(self, name: str, argv: list[str], port: int) -> str:
        self._stack.start(name, argv, child_environment())
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=5).is_success:
                    return url
            if time.monotonic() > deadline:
                raise TimeoutError(f"llama-server ({name}) did not start: see {self._stack.folder}")
            time.sleep(0.1)
