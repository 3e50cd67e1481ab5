"""How what was trained is published: merged into its base, or as an adapter beside it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

Publish = Literal["merged", "adapter"]
PUBLISH: Any = Field(
    default="merged",
    description="merged: each quantization is a whole model. adapter: the adapter alone, served beside the "
    "base's file of that quantization, which is made once for all its adapters: in seconds, and a "
    "fiftieth of the bytes.",
)
EMBEDDING = "embed_tokens"


def check_publish(params: Mapping[str, Any]) -> None:
    """See that an adapter of these params can be served beside its base, if it is to be.

    Args:
        params: of a training and of what is made of it; one that is missing stands against nothing.

    Raises:
        ValueError: it cannot; the message begins with `publish`.
    """
    if params["publish"] != "adapter":
        return
    targets = params.get("lora_target_modules", "auto")
    why = None
    if params.get("tuning", "lora") == "full":
        why = 'the tuning "full" trains all weights, and no adapter'
    elif params.get("use_dora"):
        why = "DoRA scales the base's own weights, which stay as they are beside an adapter"
    elif params.get("lora_bias", "none") != "none":
        why = "lora_bias trains the base's biases, which stay as they are beside an adapter"
    elif isinstance(targets, list) and EMBEDDING in targets:
        why = f"lora_target_modules has {EMBEDDING}, which llama.cpp's adapters do not change here"
    elif params.get("imatrix"):
        why = "imatrix weighs a file by this training's rows, and the base's file is for all its adapters"
    if why is not None:
        raise ValueError(f'publish cannot be "adapter": {why}. Set publish to "merged", or leave that out')
