"""The adapter of a training: its config, and its folder."""

import shutil
from pathlib import Path
from typing import Any

from training_data.json_files import read_json, write_json
from training_data.tokens import ChatTokenizer
from worker.step import Step


def lora_config(chosen: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=chosen["lora_rank"],
        lora_alpha=chosen["lora_alpha"],
        lora_dropout=chosen["lora_dropout"],
        target_modules=chosen["lora_target_modules"],
        bias=chosen["lora_bias"],
    )


def load_adapter(model: Any, checkpoint: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint / "adapter_model.safetensors"))


def save_adapter(step: Step, model: Any, tokenizer: ChatTokenizer) -> None:
    """Write the adapter as a Hugging Face folder that names its base as the request did."""
    folder = step.input.folder / "adapter"
    # save_embedding_layers: "auto" would look the base up at the hub, by whatever its name is here.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card is an empty form
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = step.input.base.name if step.input.base else None
    write_json(folder / "adapter_config.json", config)
    shutil.copytree(tokenizer.folder, folder, dirs_exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        step.artifact(folder / name)
