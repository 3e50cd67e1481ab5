"""What a training can be whose weights are divided among GPUs (FSDP)."""

from collections.abc import Mapping
from typing import Any

# grpo writes answers with whole weights, and a reward model's head begins as a whole. Where all weights are
# trained, dpo and kto take a fingerprint of the whole of them.
METHODS = {
    "lora": ("supervised", "pretraining", "dpo", "orpo", "kto"),
    "full": ("supervised", "pretraining", "orpo"),
}
# Whose state is divided as the weights are.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def why_not_sharded(chosen: Mapping[str, Any]) -> tuple[str, str] | None:
    """The field that does not go with weights that are divided, and why; None: nothing is in the way.

    Args:
        chosen: a fine-tune's parameters, or what has become of them.
    """
    method, tuning = chosen["method"], chosen["tuning"]
    optimizer = chosen["training_args"].get("optim", OPTIMIZERS[0])
    if method not in METHODS[tuning]:
        with_all = ' with the tuning "full"' if method in METHODS["lora"] else ""
        return "method", f"{method}{with_all} needs whole weights in each process"
    if chosen["bits"] in (4, 8):
        return "bits", f"weights of {chosen['bits']} bits are not divided, only those of 16"
    if chosen["use_dora"]:
        return "use_dora", "DoRA needs the whole matrix that it adapts"
    if chosen["lora_bias"] != "none":
        return "lora_bias", "bias terms are the base's own, which is divided, and no adapter's"
    if tuning == "full" and optimizer not in OPTIMIZERS:
        return (
            "training_args",
            f"the state of {optimizer} is not divided, only those of {', '.join(OPTIMIZERS)}",
        )
    return None
