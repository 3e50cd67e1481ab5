"""Merge a LoRA adapter into its base: in fp32, rounded once to the base's 16-bit dtype.

Never into 4-bit weights: the adapter was trained against them, but what is served is made from the
16-bit ones. Only one matrix at a time is held in fp32.
"""

import warnings
from pathlib import Path
from typing import Any


def merge_adapter(base: Path, adapter: Path, target: Path) -> None:
    """Write base + adapter to `target`: config and safetensors, without a tokenizer."""
    from transformers import AutoModelForCausalLM

    dtype = sixteen_bit_dtype(base)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    merged_into(model, adapter, dtype).to(dtype).save_pretrained(target)


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


def round_weights(source: Path, target: Path, *, like: Path) -> None:
    """Write a model that is stored in 32 bits in the 16 of `like`, to `target`, without a tokenizer."""
    from transformers import AutoModelForCausalLM

    dtype = sixteen_bit_dtype(like)
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    model.save_pretrained(target)


def gguf_dtype(folder: Path) -> str:
    """The converter's name of that dtype: f16 or bf16."""
    return "f16" if str(sixteen_bit_dtype(folder)) == "torch.float16" else "bf16"


def sixteen_bit_dtype(folder: Path) -> Any:
    """The dtype of the model's weights; bfloat16 where they are stored in 32 bits."""
    import torch

    return _stored_dtype(folder) if has_sixteen_bits(folder) else torch.bfloat16


def has_sixteen_bits(folder: Path) -> bool:
    """Whether the weights are stored in 16 bits."""
    import torch

    return _stored_dtype(folder) in (torch.float16, torch.bfloat16)


def _stored_dtype(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).dtype
