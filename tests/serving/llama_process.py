"""Real llama-servers for tests: one file, or a router over a folder."""

import subprocess
import time
from pathlib import Path

from db.settings import Settings
from serving import llama_cpp
from serving.embedding_model import ensure_embedding_model
from serving.local_port import free_port
from serving.openai_compatible import LlamaServer
from serving.served_adapters import prepare_folder


class LlamaProcess:
    """A llama-server for one file, or for a folder when `path` is one; ready once constructed."""

    def __init__(
        self,
        path: Path,
        *,
        api_key: str = "",
        argv: list[str] | None = None,
        port: int | None = None,
        adapter: Path | None = None,
    ) -> None:
        settings = Settings(chat_port=port or free_port(), data_dir=path)
        tools = llama_cpp.require_tools(settings)
        self.port = settings.chat_port
        if argv is None and path.is_dir():
            prepare_folder(settings.served_models_dir)
            argv = llama_cpp.chat_server_argv(tools, settings)
        elif argv is None:
            argv = llama_cpp.model_server_argv(
                tools, path, port=self.port, threads=1, n_gpu_layers=0, context=256, slots=2, adapter=adapter
            )
        environment = [f"{k}={v}" for k, v in llama_cpp.child_environment(api_key).items()]
        self.log = (path if path.is_dir() else path.parent) / f"llama-server-{self.port}.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(["env", *environment, *argv], stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = LlamaServer(self.url, api_key=api_key)
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self.server.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(self.log.read_text()[-3000:])
            time.sleep(0.03)

    def stop(self) -> None:
        self.server.close()
        self._process.terminate()
        self._process.wait(20)


def embedding_process(folder: Path, model: Path | None = None) -> LlamaProcess:
    """The embedding server, as `lathe up` starts it, or for another model."""
    settings = Settings(embedding_port=free_port())
    tools = llama_cpp.require_tools(settings)
    model = model or ensure_embedding_model(tools, settings)
    argv = llama_cpp.embedding_server_argv(tools, settings, model)
    return LlamaProcess(folder, argv=argv, port=settings.embedding_port)
