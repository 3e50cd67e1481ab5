"""What makes a training fast where it runs, and changes nothing of what is learnt; what was chosen is told.

Each choice is one function that settles what is `auto`; what the request gives wins. Figures and what was
tried: docs/experiments.md, "What a training step costs".

bits           16 where the base fits beside its training, else 4 (`tunings.settle_bits`).
batches        without padding where the model attends by rows (`row_attention.py`), of like length where it
               does not. On a GPU rows are packed besides: even, full sequences keep it busy.
checkpointing  on a GPU, of models of 1 B and more: none, all but attention, or all, as memory allows.
output layer   on a CPU its logits are held as a whole where that takes no more memory than trl's tiles, which
               compute them twice; on a GPU it is tiles.
compile        on a CPU only where it is asked for: it saves a seventh of a tiny model's step, next to
               nothing of a larger one's, for a minute of compiling. On a GPU where a training in 16 bits
               takes hours (`compile_pays`). `training_args: {"torch_compile": true}`, or false, wins.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.division import Division
from training_data.durations import operations, rate_of
from training_data.footprint import (
    WHOLE_LOGITS,
    device_memory,
    holds_whole_logits,
    tiles_bytes,
    whole_logits_bytes,
)
from training_data.hyperparameters import CHECKPOINTING_FROM
from training_data.machines import Machine
from training_data.model_shape import ModelShape
from training_data.presets import AUTO
from worker.step import Step
from worker.steps import together

WHOLE, TILES = "whole", "tiles"
PADDING_FREE, PACKED, GROUPED, PADDED = "padding_free", "packed", "grouped", "padded"
GROUP_BY_LENGTH_FROM_BATCHES = 4
OWN_ORDER = ("kto", "grpo")  # whose batches belong together
# From what costs least time to what takes least memory: gradient_checkpointing, selective_checkpointing.
CHECKPOINTING = {"nothing": (False, False), "all but attention": (True, True), "all": (True, False)}
# Of `training_args`: whoever gives one knows what is to be computed twice.
GIVEN_CHECKPOINTING = {"gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"}
# Of a GPU's memory that the arithmetic may fill; it has been up to a fifth off.
SAFE_SHARE = 0.8
# Of `training_args`: each asks for it. `torch_compile` false forbids it.
COMPILING = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
# On a GPU, guessed with care until `bench/gpu/training.py --compile` has run: what of a step is saved, and
# the seconds that compiling takes, which have to come back several times over.
COMPILED_SAVES, COMPILING_SECONDS, RETURN = 0.05, 120, 5
COMPILED_TOGETHER = (None, "ddp")  # how several processes train
# What computes attention, as torch dispatches it; the last is `row_attention`'s on a GPU.
ATTENTION_OPERATIONS = (
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "torch_attn._varlen_attn",
)


def settle_speed(
    step: Step,
    base: Path,
    chosen: dict[str, Any],
    division: Division,
    *,
    lengths: Sequence[int],
    model: Any,
) -> Division:
    """Choose all that is chosen once the rows and the model are there.

    Args:
        chosen: the hyperparameters; gets `batching`, `attention`, `selective_checkpointing`, and where rows
            are packed of itself `packed_length`, `longest_row` and `eval_batch_size`.
        lengths: tokens of each row that is trained on.

    Returns:
        the division; of packs, where rows are packed.
    """
    from worker.steps.base_model import shape_of

    division = _settle_batching(step, chosen, division, lengths, model)
    longest = max(lengths) or chosen["max_length"]  # answers that are not written yet have no length
    _settle_checkpointing(step, shape_of(base), chosen, longest, _gpu_bytes(model))
    if chosen["selective_checkpointing"]:
        keep_attention(model)
    return division


def _settle_batching(
    step: Step, chosen: dict[str, Any], division: Division, lengths: Sequence[int], model: Any
) -> Division:
    """Choose how rows share a batch, and give the model the attention that goes with it."""
    packing = step.input.params.get("packing", AUTO)
    # Plain text comes in sequences that are full already; preferences are pairs to their trainers.
    joined = chosen["method"] == "supervised" and packing is not False
    why_not = _take_up_rows(model, chosen) if joined else None
    by_rows = joined and why_not is None
    if together.agreed(by_rows) != [by_rows]:
        raise RuntimeError("A process computes attention otherwise than the first of those it trains with.")
    chosen["attention"] = "rows" if by_rows else str(model.config._attn_implementation)
    if packing is True:
        chosen["batching"] = PACKED
    elif by_rows:
        chosen["batching"] = PADDING_FREE
        if _gpu_bytes(model) is not None:
            division = _pack(chosen, division, lengths)
    else:
        enough = len(lengths) >= GROUP_BY_LENGTH_FROM_BATCHES * division.effective_batch
        chosen["batching"] = GROUPED if enough and chosen["method"] not in OWN_ORDER else PADDED
    step.event(_told(chosen, why_not), batching=chosen["batching"], attention=chosen["attention"])
    return division


def _pack(chosen: dict[str, Any], division: Division, lengths: Sequence[int]) -> Division:
    packed, length = packs(division, lengths, at_most=chosen.get("packed_length", math.inf))
    chosen |= {
        "batching": PACKED,
        "packing": True,
        "packed_length": length,
        "longest_row": max(lengths),  # no pack can be shorter
        "eval_batch_size": chosen["batch_size"],
        "batch_size": 1,
        "gradient_accumulation_steps": packed.accumulation * packed.ranks,
    }
    return packed


def packs(division: Division, lengths: Sequence[int], *, at_most: float = math.inf) -> tuple[Division, int]:
    """Sequences of even length in place of micro-batches.

    A step learns from as many rows as it would without, on average, so that rates and epochs keep their
    meaning; and no sequence has more tokens than a padded micro-batch of the longest rows, which memory was
    reckoned for.

    Args:
        at_most: tokens of a sequence, since memory ran out; the longest row needs as many as it has.

    Returns:
        the division, one sequence a micro-batch, and the tokens of one.
    """
    rows, longest = division.batch_size, max(lengths)
    a_step = rows * division.accumulation * sum(lengths) / len(lengths)  # of one process
    length = max(longest, int(min(rows * longest, at_most, math.ceil(a_step))))
    return replace(division, batch_size=1, accumulation=max(1, round(a_step / length))), length


def _take_up_rows(model: Any, chosen: dict[str, Any]) -> str | None:
    from worker.steps.row_attention import device_has_it, take_up

    if not device_has_it(chosen["compute_dtype"]):
        return "this device has none for rows in one sequence"
    return take_up(model)


def _gpu_bytes(model: Any) -> int | None:
    """The memory of the GPU that the model is on, or the smallest of several; None: it is on the CPU."""
    import torch

    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    return min((torch.cuda.get_device_properties(each).total_memory for each in devices), default=None)


def _told(chosen: dict[str, Any], why_not: str | None) -> str:
    length = chosen.get("packed_length", chosen["max_length"])
    alone = "each with attention to itself alone" if chosen["attention"] == "rows" else "apart by a mask"
    kept = f" The model keeps its own attention: {why_not}." if why_not else ""
    return {
        PADDING_FREE: f"The rows of a batch follow each other in one sequence, {alone}: nothing is padded.",
        PACKED: f"Rows are packed whole into sequences of {length} tokens, {alone}.",
        GROUPED: "Rows of like length share a batch, which is padded to its longest.",
        PADDED: "Each batch is padded to its longest row.",
    }[chosen["batching"]] + kept


def _settle_checkpointing(
    step: Step, shape: ModelShape, chosen: dict[str, Any], longest: int, gpu_bytes: int | None
) -> None:
    """Choose what is computed twice to save memory: as little as fits, by the estimate's arithmetic."""
    given = step.input.params.get("gradient_checkpointing", AUTO)
    chosen.setdefault("selective_checkpointing", False)
    lowered = "selective_checkpointing" in step.input.adjustments
    own = GIVEN_CHECKPOINTING & chosen["training_args"].keys()
    if gpu_bytes is None or lowered or own or given is False or shape.parameters < CHECKPOINTING_FROM:
        return
    kinds = [kind for kind, (twice, _) in CHECKPOINTING.items() if twice or given is not True]
    needs = {kind: _with(shape, chosen, kind, longest) for kind in kinds}
    kind = next((kind for kind in kinds if needs[kind] <= SAFE_SHARE * gpu_bytes), "all")
    chosen["gradient_checkpointing"], chosen["selective_checkpointing"] = CHECKPOINTING[kind]
    told = ", ".join(f"{needs[each] / 1e9:.1f} GB with {each}" for each in kinds)
    step.event(
        f"Of each layer, {kind} is computed twice to save memory: estimated are {told}, and "
        f"{gpu_bytes / 1e9:.1f} GB are there.",
        checkpointing=kind,
        needs=needs,
    )


def _with(shape: ModelShape, chosen: dict[str, Any], kind: str, longest: int) -> int:
    twice, selective = CHECKPOINTING[kind]
    changed = {**chosen, "gradient_checkpointing": twice, "selective_checkpointing": selective}
    return device_memory(shape, changed, longest).total


def settle_output_layer(
    step: Step, base: Path, trainer: Any, chosen: dict[str, Any], lengths: Sequence[int]
) -> None:
    """Have the output layer of a model that is trained on a CPU hold whole logits where that pays, and tell.

    Args:
        chosen: gets `output_layer`.
    """
    from worker.steps.base_model import shape_of
    from worker.steps.whole_logits import hold_whole_logits

    chosen["output_layer"] = TILES
    if _gpu_bytes(trainer.model) is not None or chosen["method"] not in WHOLE_LOGITS:
        return
    shape, longest = shape_of(base), max(lengths) or chosen["max_length"]
    whole, tiles = whole_logits_bytes(shape, chosen, longest), tiles_bytes(shape, chosen, longest, "cpu")
    if holds_whole_logits(shape, chosen, longest) and hold_whole_logits(trainer.model):
        chosen["output_layer"] = WHOLE
    taken = (
        f"are held as a whole, and computed once: at most {whole / 1e6:.0f} MB, where tiles would take "
        f"{tiles / 1e6:.0f} MB"
        if chosen["output_layer"] == WHOLE
        else f"come in tiles, which are computed twice: as a whole they would take {whole / 1e6:.0f} MB, and "
        f"tiles take {tiles / 1e6:.0f} MB"
    )
    step.event(f"The output layer's logits {taken}.", output_layer=chosen["output_layer"])


def settle_compile(
    step: Step, base: Path, trainer: Any, chosen: dict[str, Any], division: Division, *, tokens: float
) -> None:
    """Have the layers of what is trained compiled, where it is asked for or pays; tell which, and why.

    Args:
        chosen: gets `compiled`.
        tokens: that are trained on in all.
    Raises:
        InvalidInput: it is asked for, and cannot be.
    """
    from worker.steps.base_model import shape_of
    from worker.steps.compiled_layers import compile_layers

    given, gpu = chosen["training_args"], _gpu_bytes(trainer.model) is not None
    asked = given.get("torch_compile", any(given.get(name) for name in COMPILING) or None)
    rate = rate_of(Machine("", device=_gpu_name() if gpu else None), step.input.settings.threads)
    seconds = tokens * operations(shape_of(base).parameters, chosen) / rate
    pays = asked is None and division.ranks == 1 and compile_pays(chosen, seconds, gpu=gpu)
    chosen["compiled"] = bool(asked or pays)
    if asked and division.parallel not in COMPILED_TOGETHER:
        raise InvalidInput(
            f"training_args: torch_compile does not go with {division.parallel}, which takes layers apart: "
            "leave it out.",
            param="training_args",
        )
    if asked is None:
        step.event(_told_of_compiling(seconds, gpu=gpu, pays=pays), compiled=pays)
    if not chosen["compiled"]:
        return
    backend, mode = (given.get(name) for name in COMPILING[1:])
    folder = step.input.settings.cache_dir / "compiled"
    count = compile_layers(trainer.model, folder, backend=backend, mode=mode, forgiving=pays)
    step.event(
        f"The parts of {count} layers are compiled by torch.compile at their first use, which takes a minute "
        "or more; what is trained is what would be without, rounded otherwise."
        if count
        else "Nothing is compiled: transformers tells nothing of this model's layers.",
        level="info" if count else "warn",
        layers=count,
    )


def compile_pays(chosen: dict[str, Any], seconds: float, *, gpu: bool) -> bool:
    """Whether a training is so long that compiling gives back, with some certainty, what it takes."""
    plain = chosen["bits"] == 16 and chosen["method"] != "grpo"  # whose answers are most of the work
    return gpu and plain and COMPILED_SAVES * seconds >= RETURN * COMPILING_SECONDS


def _told_of_compiling(seconds: float, *, gpu: bool, pays: bool) -> str:
    if pays:
        return f"torch.compile should pay in a training of some {seconds / 3600:.1f} hours."
    least = RETURN * COMPILING_SECONDS / COMPILED_SAVES
    why = (
        f"it pays in 16 bits from some {least / 3600:.1f} hours on, and this training takes about "
        f"{seconds / 3600:.1f}"
        if gpu
        else "on a CPU it seldom gives back the minute that it takes"
    )
    return f'Without torch.compile: {why}. training_args {{"torch_compile": true}} has it all the same.'


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def keep_attention(model: Any) -> None:
    """Of what checkpointing computes twice, leave out attention, whose output is kept.

    trl's own way wraps peft's model, past which transformers 5.23 turns checkpointing on; and does not know
    `row_attention`'s operation.
    """
    from torch.nn.attention import varlen  # noqa: F401 - registers its operation
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = inner.gradient_checkpointing_enable
    contexts = partial(create_selective_checkpoint_contexts, _attention_operations())

    def enable_selective(gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        given = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False, "context_fn": contexts}
        enable(gradient_checkpointing_kwargs=given, **kwargs)

    inner.gradient_checkpointing_enable = enable_selective


def _attention_operations() -> list[Any]:
    """Those that this build of torch has."""
    import torch

    found = []
    for name in ATTENTION_OPERATIONS:
        space, _, operation = name.partition(".")
        packet = getattr(getattr(torch.ops, space), operation, None)
        if packet is not None:
            found.append(packet.default)
    return found
