"""peft's `adapter_config.json`, as the params of a fine-tune call what is in it."""

from pathlib import Path
from typing import Any

from training_data.json_files import read_json

CONFIG_FILE = "adapter_config.json"


def adapter_params(folder: Path) -> dict[str, Any]:
    """What an adapter is by: a training that goes on with it can have no other, but for its dropout."""
    config = read_json(folder / CONFIG_FILE)
    targets = config["target_modules"]
    return {
        "lora_rank": config["r"],
        "lora_alpha": float(config["lora_alpha"]),
        "lora_target_modules": targets if isinstance(targets, str) else sorted(targets),
        "lora_bias": config["bias"],
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
    }
