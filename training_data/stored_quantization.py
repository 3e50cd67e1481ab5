"""Weights that are stored quantised, by GPTQ (Frantar et al. 2022, arXiv:2210.17323) or AWQ (Lin et al. 2023,
arXiv:2306.00978).

An adapter can be trained beside them, and is served through the 16-bit model that they were made from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from db.errors import InvalidInput

if TYPE_CHECKING:  # whose library takes longer to import than all else here
    from db.params.fine_tune import FineTuneParams

AUTO = "auto"
METHODS = ("gptq", "awq")
BITS = (4, 8)
OF_16_BITS = ("reward", "grpo")
# What a quantised model and the one that it was made from have in common.
SAME_IN_BOTH = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class StoredQuantization:
    """Args:
    method: "gptq" or "awq".
    group_size: how many weights of a row share a scale; -1: all of them.
    """

    method: str
    bits: int
    group_size: int

    def __str__(self) -> str:
        return f"{self.method.upper()} of {self.bits} bits"


def stored_quantization(config: Mapping[str, Any]) -> StoredQuantization | None:
    """Read how weights are stored from a model's config.json; None where that is neither GPTQ nor AWQ."""
    given = config.get("quantization_config")
    if not isinstance(given, Mapping) or given.get("quant_method") not in METHODS:
        return None
    bits, group_size = given.get("bits"), given.get("group_size")
    return StoredQuantization(
        method=str(given["quant_method"]),
        bits=bits if isinstance(bits, int) else 4,
        group_size=group_size if isinstance(group_size, int) else -1,
    )


def check_fine_tune(params: "FineTuneParams", name: str, stored: StoredQuantization | None) -> None:
    """See that what is asked for can be trained on a base whose weights are stored so.

    Args:
        name: of the base.
        stored: None: in 16 bits or more.
    Raises:
        InvalidInput: it cannot; the message names the field and what would do.
    """
    if stored is None:
        if params.merge_base is not None:
            raise InvalidInput(
                f"merge_base: {name} is not quantised, and an adapter is merged into itself: leave it out.",
                param="merge_base",
            )
        return
    for field, why in _refused(params, stored):
        raise InvalidInput(f"{field}: {name} is a {stored}. {why}", param=field)


def _refused(params: "FineTuneParams", stored: StoredQuantization) -> list[tuple[str, str]]:
    """The fields that do not go with such a base, and what to do instead."""
    found = []
    if stored.bits not in BITS:
        found.append(("base_model", "Those of 4 and of 8 bits can be trained on: choose one of them."))
    if params.tuning == "full":
        found.append(("tuning", 'Rounded weights cannot be trained: take "lora", or its 16-bit model.'))
    if params.method in OF_16_BITS:
        found.append(
            (
                "method",
                f"{params.method} is trained on a base of 16 bits, which bits 4 packs as it is loaded: name "
                "the model that this one was made from.",
            )
        )
    if params.use_dora:
        found.append(("use_dora", "DoRA needs weights as they are: leave it out, or take its 16-bit model."))
    if params.bits not in (AUTO, stored.bits):
        found.append(("bits", f"It is trained on as it is: leave bits out, or give {stored.bits}."))
    if params.merge_base is None:
        found.append(
            (
                "merge_base",
                "An adapter is merged into 16-bit weights only, for the files that are served: name the "
                "model that it was made from, such as Qwen/Qwen3-0.6B.",
            )
        )
    return found


def check_merge_base(
    quantized: Mapping[str, Any], merge_base: Mapping[str, Any], *, name: str, merge_name: str
) -> None:
    """See by the configs that a 16-bit model may be what a quantised one was made from.

    Raises:
        InvalidInput: it is quantised too, or of another shape.
    """
    if "quantization_config" in merge_base:
        raise InvalidInput(
            f"merge_base: {merge_name} is quantised too. Name the 16-bit model that {name} was made from.",
            param="merge_base",
        )
    other = [
        f"{key} {merge_base.get(key)} in place of {quantized.get(key)}"
        for key in SAME_IN_BOTH
        if merge_base.get(key) != quantized.get(key)
    ]
    if other:
        raise InvalidInput(
            f"merge_base: {name} was not made from {merge_name}, which has {', '.join(other)}.",
            param="merge_base",
        )
