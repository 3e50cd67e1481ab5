"""Load a base model for training: NF4 with double quantisation, 8-bit, or 16-bit; CPU and CUDA alike."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.step import Step

if TYPE_CHECKING:
    import torch


def compute_dtype(wanted: str) -> "torch.dtype":
    """bfloat16 where the device computes in it, else float32 (float16 overflows in training)."""
    import torch

    if wanted == "fp32":
        return torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Emulated bfloat16 is slower than float32 on a CPU without its instructions.
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if native else torch.float32


def load_for_training(folder: Path, bits: int, dtype: "torch.dtype") -> Any:
    """Load a causal language model over all the devices this process sees.

    Args:
        folder: the model, in Hugging Face's layout, with safetensors.
        bits: 4 (NF4, double quantisation), 8 (LLM.int8) or 16.
        dtype: of what is not quantised, and of the arithmetic.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = {
        4: lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        8: lambda: BitsAndBytesConfig(load_in_8bit=True),
        16: lambda: None,
    }[bits]()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=quantization,
        device_map=_device_map(torch),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    model.config.use_cache = False
    return model


def device_name(step: Step) -> str:
    """Name what this process trains on, and tell the user."""
    import torch

    if not torch.cuda.is_available():
        name = f"cpu ({step.input.settings.threads} threads)"
    else:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        name = ", ".join(f"cuda:{i} {text}" for i, text in enumerate(names))
    step.event(f"Training on {name}.", device=name)
    return name


def _device_map(torch: Any) -> Any:
    """One GPU holds all; several share the layers; without one, the CPU."""
    if not torch.cuda.is_available():
        return {"": "cpu"}
    return {"": 0} if torch.cuda.device_count() == 1 else "auto"
