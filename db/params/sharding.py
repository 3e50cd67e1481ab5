"""What a training can be whose weights are divided among GPUs (FSDP)."""

from collections.abc import Mapping
from typing import Any

# Where all weights are trained, dpo and kto take a fingerprint of the whole of them, and the head of a reward
# model begins as a whole.
NOT_WITH_ALL_WEIGHTS = ("dpo", "kto", "reward")
# Whose state is divided as the weights are.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def why_not_sharded(chosen: Mapping[str, Any]) -> tuple[str, str] | None:
    """The field that does not go with weights that are divided, and why; None: nothing is in the way.

    Args:
        chosen: a fine-tune's parameters, or what has become of them.
    """
    method, tuning = chosen["method"], chosen["tuning"]
    optimizer = chosen["training_args"].get("optim", OPTIMIZERS[0])
    if tuning == "full" and method in NOT_WITH_ALL_WEIGHTS:
        return "method", f'{method} with the tuning "full" needs whole weights in each process'
    if chosen["bits"] == 8:
        return "bits", "weights of 8 bits (LLM.int8) are not divided, only those of 4 and 16"
    if chosen["use_dora"] and chosen["bits"] == 4:
        return "use_dora", "DoRA needs its matrices in 16 bits there"
    if chosen["lora_bias"] != "none":
        return "lora_bias", "bias terms are the base's own, which is divided, and no adapter's"
    if tuning == "full" and optimizer not in OPTIMIZERS:
        return (
            "training_args",
            f"the state of {optimizer} is not divided, only those of {', '.join(OPTIMIZERS)}",
        )
    return None
