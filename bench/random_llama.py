"""Llamas with random weights, of any shape: what trains is real, what it knows is not."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from db.errors import NotFound
from db.settings import load_settings
from training_data.json_files import read_json
from worker.steps.base_model import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import LlamaConfig


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int = 2048
    dtype: str = "bfloat16"
    key_value_heads: int | None = None  # None: half as many


def name_of(shape: Shape) -> str:
    return f"llama-{shape.hidden}-{shape.layers}-{shape.intermediate}-{shape.vocabulary}"


def config_of(shape: Shape) -> "LlamaConfig":
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads or shape.heads // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )


def write(shape: Shape, folder: Path, *, seed: int | None = None, device: str = "cpu") -> None:
    """Make one, with the tokenizer of `tiny`, of whose ids it may have more than that.

    Args:
        device: where the weights are drawn.

    Raises:
        NotFound: no `tiny` was ever made here.
    """
    import torch
    from transformers import LlamaForCausalLM

    config = config_of(shape)
    if seed is not None:
        torch.manual_seed(seed)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(getattr(torch, shape.dtype))
    model.save_pretrained(folder)
    tokenizer = _tokenizer(shape.vocabulary)
    for name in (*TOKENIZER_FILES, "chat_template.jinja"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def _tokenizer(most: int) -> Path:
    """The folder of a model in the cache whose tokenizer has no more ids than that."""
    kept = load_settings().cache_dir / "weights"
    for folder in sorted(kept.iterdir()) if kept.is_dir() else []:
        if 1024 <= read_json(folder / "config.json").get("vocab_size", 0) <= most:
            return folder
    raise NotFound("No `tiny` is in the cache: run `make demo`, or any job that starts from it, once.")
