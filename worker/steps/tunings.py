"""What of a model is trained, an adapter beside its weights or all of them: how it is loaded, and kept."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data.json_files import read_json, write_json
from training_data.placement import BASE_SHARE, WHOLE_BYTES, WHOLE_SHARE
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps import together
from worker.steps.merging import merged_into, sixteen_bit_dtype
from worker.steps.sharding import put_away
from worker.steps.stacking import started_adapter, started_model, with_adapter


@dataclass(frozen=True)
class Tuning:
    """Args:
    load: the model that a trainer is given, from the base's folder; or a process's share of it.
    config: peft's; None where no adapter is made.
    save: what the training has come to, into the attempt's folder, with the tokenizer; by the first process,
        or of a sharded model by all of them.
    what: how that which learns is called.
    """

    load: Callable[[Step, Path, dict[str, Any], bool], Any]
    config: Callable[[Step, dict[str, Any]], Any]
    save: Callable[[Step, Any, ChatTokenizer, Path], None]
    what: str


def settle_bits(step: Step, folder: Path, chosen: dict[str, Any], *, copies: int = 1) -> None:
    """Choose the bits of the weights that an adapter is trained on, by the memory of each copy's device."""
    import torch

    from worker.steps.base_model import count_parameters

    if "bits" in step.input.adjustments:
        step.event(
            "The base is loaded in 4 bits: with 16, memory ran out.", level="warn", bits=chosen["bits"]
        )
    if chosen["bits"] != "auto":
        return
    needed = 2 * count_parameters(folder)
    if not torch.cuda.is_available():
        chosen["bits"] = 4
        step.event("The base is loaded in 4 bits: on a CPU that computes as fast as 16.", bits=4)
        return
    there = memory_bytes(copies)
    fits = needed <= BASE_SHARE * there
    chosen["bits"] = 16 if fits else 4
    why = "fits, and is the faster" if fits else "would leave too little for training"
    step.event(
        f"The base is loaded in {chosen['bits']} bits: in 16 it takes {needed / 1e9:.1f} GB of "
        f"the {there / 1e9:.1f} GB that there are, which {why}.",
        bits=chosen["bits"],
    )


def _load_base(step: Step, folder: Path, chosen: dict[str, Any], sharded: bool) -> Any:
    import torch

    from worker.steps.base_model import fetch_base
    from worker.steps.gptq import see_that_it_was_made_from
    from worker.steps.quantized_base import check_targets, load_for_training

    model = load_for_training(
        folder,
        chosen["bits"],
        getattr(torch, chosen["compute_dtype"]),
        judges=chosen["method"] == "reward",
        sharded=sharded,
    )
    check_targets(model, chosen["lora_target_modules"])
    base = step.input.base
    if base is not None and base.merge_base is not None:
        see_that_it_was_made_from(model, base, fetch_base(base.merge_base, step, param="merge_base"))
    adapter = started_adapter(step)
    return model if adapter is None else with_adapter(model, adapter, chosen["lora_dropout"])


def _load_whole(step: Step, folder: Path, chosen: dict[str, Any], sharded: bool) -> Any:
    """In float32 where that fits with all that training needs, for bfloat16 rounds small steps away."""
    import torch

    from worker.steps.base_model import count_parameters
    from worker.steps.quantized_base import load_for_training

    needed = WHOLE_BYTES * count_parameters(folder) / (together.count() if sharded else 1)
    fits = needed <= WHOLE_SHARE * memory_bytes(together.count())
    dtype = torch.float32 if fits else getattr(torch, chosen["compute_dtype"])
    if dtype != torch.float32:
        step.event(
            f"All weights are trained in bfloat16: in float32 they would need {needed / 1e9:.0f} GB. Steps "
            "that are small beside a weight are lost in its rounding.",
            level="warn",
        )
    judges = chosen["method"] == "reward"
    model = load_for_training(started_model(step) or folder, 16, dtype, judges=judges, sharded=sharded)
    adapter = started_adapter(step)
    # peft freezes what it puts an adapter beside.
    return model if adapter is None else merged_into(model, adapter, dtype).requires_grad_(True)


def memory_bytes(copies: int = 1) -> int:
    """What each of so many copies may take of all GPUs that this process sees, or else of the host."""
    import psutil
    import torch

    if not torch.cuda.is_available():
        return int(psutil.virtual_memory().total) // copies
    each = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return sum(each) if copies == 1 else min(each)


def _lora_config(step: Step, chosen: dict[str, Any]) -> Any:
    from peft import LoraConfig

    from worker.steps.quantized_base import HEAD

    if started_adapter(step) is not None:
        return None  # it is there
    judges = chosen["method"] == "reward"
    return LoraConfig(
        task_type="SEQ_CLS" if judges else "CAUSAL_LM",
        modules_to_save=[HEAD] if judges else None,
        r=chosen["lora_rank"],
        lora_alpha=chosen["lora_alpha"],
        lora_dropout=chosen["lora_dropout"],
        target_modules=chosen["lora_target_modules"],
        bias=chosen["lora_bias"],
        use_rslora=chosen["use_rslora"],
        use_dora=chosen["use_dora"],
    )


def _save_adapter(step: Step, model: Any, tokenizer: ChatTokenizer, base: Path) -> None:
    """Write the adapter as a Hugging Face folder that names its base as the request did."""
    folder = step.input.folder / "adapter"
    # save_embedding_layers: "auto" would look the base up at the hub, by whatever its name is here.
    if not together.is_first():
        return  # its adapter is the same
    model.save_pretrained(
        folder, safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
    (folder / "README.md").unlink(missing_ok=True)  # peft's card is an empty form
    config = read_json(folder / "adapter_config.json")
    config["base_model_name_or_path"] = step.input.base.name if step.input.base else None
    write_json(folder / "adapter_config.json", config)
    shutil.copytree(tokenizer.folder, folder, dirs_exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        step.artifact(folder / name)


def _save_whole(step: Step, model: Any, tokenizer: ChatTokenizer, base: Path) -> None:
    """Write all weights, rounded once to the 16 bits of the base, as a Hugging Face folder."""
    folder = step.input.folder / "model"
    model.config.use_cache = True
    put_away(model)
    model.to(sixteen_bit_dtype(base)).save_pretrained(folder)
    if not together.is_first():
        return
    shutil.copytree(tokenizer.folder, folder, dirs_exist_ok=True)
    for path in sorted(folder.glob("*.safetensors")):
        step.artifact(path)
    step.artifact(folder / "config.json")


TUNINGS = {
    "lora": Tuning(_load_base, _lora_config, _save_adapter, "LoRA weights"),
    "full": Tuning(_load_whole, lambda step, chosen: None, _save_whole, "weights, which are all,"),
}
