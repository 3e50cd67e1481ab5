"""How vLLM's OpenAI server is called, for a backend of type transformers with engine vllm."""

import json
from typing import Any

from db.errors import InvalidInput
from serving.backends.configuration import SETTING, Process

QUANTIZED = "bitsandbytes"


def vllm_argv(name: str, process: Process) -> list[str]:
    """`vllm serve`, on loopback. `name` is the model, or the adapter if there is one.

    Raises:
        InvalidInput: a field is of the other engine.
    """
    for field in ("model_kwargs", "tokenizer_kwargs"):
        if getattr(process, field):
            raise InvalidInput(
                f"{SETTING}: {name}.process.{field} goes with engine transformers; vllm_kwargs with vllm.",
                param=SETTING,
            )
    argv = ["vllm", "serve", process.model, "--host", "127.0.0.1", "--port", str(process.port)]
    argv += ["--tensor-parallel-size", str(process.tensor_parallel_size)]
    argv += ["--served-model-name", name if process.adapter_id is None else f"{name}-base"]
    if process.adapter_id is not None:
        argv += ["--enable-lora", "--lora-modules", f"{name}={process.adapter_id}"]
    if process.revision is not None:
        argv += ["--revision", process.revision]
    if process.bits == 4:
        argv += ["--quantization", QUANTIZED]
    if process.bits == 8:
        raise InvalidInput(
            f"{SETTING}: {name}.process.bits: vLLM quantises to 4 bits; 8 goes with transformers.",
            param=SETTING,
        )
    for field, value in process.vllm_kwargs.items():
        argv += _flag(field.replace("_", "-"), value)
    return argv


def _flag(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
