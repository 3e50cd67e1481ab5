"""Models and adapters of random weights, in Hugging Face's layout, for `bench.export`:

    python -m bench.export_models SHAPE FOLDER SEED

What weights say does not matter to an export, only how many there are, and that they are spread as weights.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.export_shapes import SHAPES, VOCABULARY, Shape
from training_data.chat_templates import OWN_MODELS
from worker.steps.pretrain_text import train_tokenizer

RANK, ALPHA = 16, 32
SPREAD = 0.02
LORA_SPREAD = 0.01
TEXT = [f"A text of {number} words, so that there is a tokenizer." for number in range(200)]


def write_model(shape: Shape, folder: Path, seed: int) -> None:
    """Write `base/` and `adapter/`."""
    dice = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    adapter: dict[str, torch.Tensor] = {}

    def spread(rows: int, columns: int, by: float) -> torch.Tensor:
        return torch.empty(rows, columns).normal_(0, by, generator=dice)

    tensors["model.embed_tokens.weight"] = spread(VOCABULARY, shape.hidden, SPREAD).bfloat16()
    tensors["model.norm.weight"] = torch.ones(shape.hidden, dtype=torch.bfloat16)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(shape.hidden, dtype=torch.bfloat16)
        for name, (rows, columns) in shape.matrices.items():
            tensors[f"{prefix}{name}.weight"] = spread(rows, columns, SPREAD).bfloat16()
            if name[-6] in "qkv":
                tensors[f"{prefix}{name}.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
            lora = f"base_model.model.{prefix}{name}.lora_"
            adapter[f"{lora}A.weight"] = spread(RANK, columns, LORA_SPREAD)
            adapter[f"{lora}B.weight"] = spread(rows, RANK, LORA_SPREAD)
    _write_folder(folder / "base", tensors, "model.safetensors", {"config.json": _config(shape)})
    _write_folder(
        folder / "adapter", adapter, "adapter_model.safetensors", {"adapter_config.json": _lora_config(shape)}
    )


def _write_folder(
    folder: Path, tensors: dict[str, torch.Tensor], weights: str, files: dict[str, object]
) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    train_tokenizer(TEXT, 512).save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(OWN_MODELS.template)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.hidden // 64,
        "num_key_value_heads": shape.kv_heads, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }  # fmt: skip


def _lora_config(shape: Shape) -> dict[str, object]:
    names = sorted(name.rpartition(".")[2] for name in shape.matrices)
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
        "target_modules": names, "base_model_name_or_path": None, "inference_mode": True, "lora_dropout": 0.0,
    }  # fmt: skip


if __name__ == "__main__":
    [found] = [shape for shape in SHAPES if shape.name == sys.argv[1]]
    write_model(found, Path(sys.argv[2]), int(sys.argv[3]))
