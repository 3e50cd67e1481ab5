"""Merge a LoRA adapter into its base: in fp32, rounded once to the base's 16-bit dtype.

Never into 4-bit weights: the adapter was trained against them, but what is served is made from the
16-bit ones. Only one matrix at a time is held in fp32.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.steps.gguf_files import place


@dataclass(frozen=True)
class Weights:
    """What is exported: a model's folder, and the adapter that is merged into it, if any.

    Args:
        like: a model whose kind of 16 bits is taken where `base` is stored in 32.
    """

    base: Path
    adapter: Path | None = None
    like: Path | None = None

    @property
    def dtype(self) -> Any:
        """The 16-bit dtype that all of it is rounded to."""
        return sixteen_bit_dtype(self.base if has_sixteen_bits(self.base) else self.like or self.base)

    @property
    def gguf_type(self) -> str:
        """How quantizations call that dtype: F16 or BF16."""
        return "F16" if str(self.dtype) == "torch.float16" else "BF16"


def write_merged(weights: Weights, target: Path) -> None:
    """Write a whole model in 16 bits: config and safetensors, without a tokenizer of its own."""
    if weights.adapter is not None:
        merged_model(weights.base, weights.adapter).save_pretrained(target)
    elif has_sixteen_bits(weights.base):
        link_weights(weights.base, target)
    else:
        _round_weights(weights, target)  # a checkpoint's are as they are trained


def merged_model(base: Path, adapter: Path) -> Any:
    """Base + adapter, in the base's 16 bits."""
    from transformers import AutoModelForCausalLM

    dtype = sixteen_bit_dtype(base)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return merged_into(model, adapter, dtype).to(dtype)


def merged_into(model: Any, adapter: Path, dtype: Any) -> Any:
    """A loaded model with an adapter merged into its weights, which are then of `dtype`."""
    import torch
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for module in tuned.modules():
            if isinstance(module, BaseTunerLayer):
                module.to(torch.float32)  # the base's matrix and the adapter's two
                module.merge(adapter_names=["default"])
                module.get_base_layer().to(dtype)
        return tuned.unload()


def link_weights(source: Path, target: Path) -> None:
    """Share the files of an earlier attempt: weights are never changed in place."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            place(path.resolve(), target / path.name)
        elif path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


def _round_weights(weights: Weights, target: Path) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        weights.base,
        dtype=weights.dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model.save_pretrained(target)


def sixteen_bit_dtype(folder: Path) -> Any:
    """The dtype of the model's weights; bfloat16 where they are stored in 32 bits."""
    import torch

    return _stored_dtype(folder) if has_sixteen_bits(folder) else torch.bfloat16


def has_sixteen_bits(folder: Path) -> bool:
    """Whether the weights are stored in 16 bits."""
    import torch

    return _stored_dtype(folder) in (torch.float16, torch.bfloat16)


def _stored_dtype(folder: Path) -> Any:
    import torch
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).dtype
    # A name, where transformers was loaded without torch.
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype
