"""A model of Hugging Face's as a server with OpenAI's routes, on loopback, for models and adapters that are
no GGUF:

    python -m worker.transformers_server NAME '{"model": "…", "adapter_id": "…", "bits": 4, "port": 8090}'

`lathe up` starts it for each backend of type transformers. The routes are those of `transformers serve`,
which knows neither adapters nor arguments for loading; these are ours. What is not safetensors is not loaded,
and no code of a model's is run.
"""

import sys
from typing import Any

from serving.backends.configuration import Process

QUANTIZATIONS = {4: "bnb-4bit", 8: "bnb-8bit", 16: None}


def make_manager(name: str, process: Process) -> Any:
    """Load the model and its tokenizer, and hold them under `name`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.utils import cached_file

    where = {"revision": process.revision, "trust_remote_code": False}

    class Manager(ModelManager):
        def _load_processor(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
            return AutoTokenizer.from_pretrained(process.model, **where, **process.tokenizer_kwargs)

        def _load_model(self, *_: Any, **__: Any) -> Any:
            loading = {"dtype": "auto", "device_map": "auto", "use_safetensors": True, **where}
            quantization = self.get_quantization_config()
            if quantization is not None:
                loading["quantization_config"] = quantization
            model = AutoModelForCausalLM.from_pretrained(process.model, **{**loading, **process.model_kwargs})
            if process.adapter_id is not None:
                # It would fall back to pickled weights, where there are no others.
                cached_file(process.adapter_id, "adapter_model.safetensors")
                model.load_adapter(process.adapter_id)
            return model.eval()

    return Manager(quantization=QUANTIZATIONS[process.bits], force_model=name)


def make_app(name: str, process: Process) -> Any:
    """The ASGI application, with the model in memory."""
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState

    manager, state = make_manager(name, process), GenerationState(continuous_batching=False)
    return build_server(
        manager,
        ChatCompletionHandler(model_manager=manager, generation_state=state),
        completion_handler=CompletionHandler(model_manager=manager, generation_state=state),
        response_handler=ResponseHandler(model_manager=manager, generation_state=state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(model_manager=manager, generation_state=state),
        generation_state=state,
    )


class Ending:
    """Adds the `data: [DONE]` that OpenAI's streams end with, and that transformers leaves out."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        streams = False

        async def send_ending(message: Any) -> None:
            nonlocal streams
            if message["type"] == "http.response.start":
                headers = dict(message["headers"])
                streams = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            elif streams and not message.get("more_body"):
                message = {**message, "body": message.get("body", b"") + b"data: [DONE]\n\n"}
            await send(message)

        await self._app(scope, receive, send_ending)


def main() -> None:
    import uvicorn

    name, written = sys.argv[1:]
    process = Process.model_validate_json(written)
    uvicorn.run(Ending(make_app(name, process)), host="127.0.0.1", port=process.port, log_level="warning")


if __name__ == "__main__":
    main()
