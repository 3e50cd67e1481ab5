"""What an adapter answers on the very weights that it was trained on, where files are made from others.

An adapter that was trained on a GPTQ or AWQ base is served merged into the 16-bit model which that was made
from. The two answer differently already before any training. So a file is held against both: against the
16-bit weights with the adapter, as any file is, and against the trainer's own, where the yardstick is how far
the file of the untuned 16-bit model, in the same quantization, is from the untuned quantised base.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.llama_cpp import Tools
from worker.step import Step
from worker.steps.base_cost import BaseCost
from worker.steps.base_model import fetch_base
from worker.steps.gptq import require_gptqmodel, see_that_it_was_made_from, stored_in
from worker.steps.reference_difference import between
from worker.steps.teacher_forcing import (
    KL_FLOOR,
    Difference,
    ForcedRow,
    Reference,
    Told,
    held_against,
    reference_of,
)
from worker.steps.trained_weights import trained_weights


@dataclass(frozen=True)
class Trainer:
    """The quantised base by its folder, and what it expects with the adapter beside it."""

    folder: Path
    reference: Reference


def trainer_of(step: Step, adapter: Path, rows: list[ForcedRow], sixteen_bit: Reference) -> Trainer | None:
    """Run rows through the weights that an adapter was trained on; None where files are made from the same.

    Args:
        sixteen_bit: what the 16-bit weights expect of these rows with the adapter.
    Raises:
        InvalidInput: this worker has not what reads such weights.
    """
    base = step.input.base
    if base is None or base.merge_base is None:
        return None
    folder = fetch_base(base, step, quantized_too=True)
    stored = stored_in(folder)
    require_gptqmodel(f"{base.name}, a {stored},")
    with trained_weights(folder, adapter) as model:
        see_that_it_was_made_from(model, base, fetch_base(base.merge_base, step, param="merge_base"))
        reference = reference_of(step, model, rows)
    apart = between(reference, sixteen_bit, rows)
    step.event(
        f"The adapter was trained on {base.name}, a {stored}. On {base.merge_base.name}, from which the "
        f"files are made, it answers {apart.kl:.5f} nats apart (top-1 agreement {apart.top1_agreement:.4f}): "
        "each file is held against both.",
        kl=apart.kl,
        top1_agreement=apart.top1_agreement,
    )
    return Trainer(folder, reference)


def trainer_cost(
    step: Step, tools: Tools, base: Path, trainer: Trainer | None, *, rows: list[ForcedRow], context: int
) -> BaseCost | None:
    """How far files of the untuned 16-bit `base` are from the untuned weights that were trained on."""
    if trainer is None:
        return None
    return BaseCost(step, tools, base, rows=rows, context=context, trained_on=trainer.folder)


def beside_trainer(trainer: Trainer | None, told: list[Told]) -> dict[str, Any]:
    """The figures of a file beside the trainer's answers."""
    if trainer is None:
        return {}
    difference = held_against(trainer.reference, told)
    return {"trainer": {"kl": difference.kl, "top1_agreement": difference.top1_agreement}}


def judge_beside_trainer(
    figures: dict[str, Any], untuned: Difference, *, min_top1_agreement: float, max_kl_ratio: float
) -> list[str]:
    """Hold a file to what its bounds are beside the trainer's answers; adds them to its figures.

    Returns:
        what is wrong.
    """
    limit = max(KL_FLOOR, max_kl_ratio * untuned.kl)
    least = min(min_top1_agreement, untuned.top1_agreement)
    figures |= {
        "kl_untuned": untuned.kl,
        "kl_limit": limit,
        "top1_agreement_untuned": untuned.top1_agreement,
        "top1_agreement_least": least,
    }
    problems = []
    if figures["top1_agreement"] < least:
        problems.append(
            "beside the quantised base that was trained on, top-1 agreement is "
            f"{figures['top1_agreement']:.4f}, at least {least:.4f} is needed"
        )
    if figures["kl"] > limit:
        problems.append(
            f"beside the quantised base that was trained on, KL divergence is {figures['kl']:.5f} nats, at "
            f"most {limit:.5f} is allowed (untuned, the two are {untuned.kl:.5f} apart): is merge_base what "
            "it was made from?"
        )
    return problems
