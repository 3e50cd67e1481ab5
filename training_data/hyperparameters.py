"""What `auto` means: a table by the model's size, adjusted to the number of rows.

A tiny model is made to know its rows by heart; a model that has seen the world is only steered, with
what practice has settled on for QLoRA: rank 16, alpha 32, 2e-4, a few epochs (Dettmers et al. 2023,
arXiv:2305.14314; Biderman et al. 2024, arXiv:2405.09673 for all linear layers and the learning rates).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from db.params.fine_tune import ADAPTER_FIELDS
from training_data.answer_batches import GRPO, batches_of_answers, settle_answers
from training_data.presets import AUTO, FULL, epochs_times, of_preset


@dataclass(frozen=True)
class SizeRow:
    """One line of the table.

    Args:
        up_to: parameters of the largest model it is meant for.
        effective_batch: rows of one optimiser step.
        micro_batch_tokens: tokens that fit into one forward pass with ease.
        by_heart: train until few rows are known verbatim, in place of a few epochs.
    """

    up_to: float
    rank: int
    learning_rate: float
    effective_batch: int
    micro_batch_tokens: int
    dropout: float = 0.0
    compute: str = "bf16"
    by_heart: bool = False


SIZES = (
    SizeRow(15e6, 64, 3e-3, 20, 16_384, compute="fp32", by_heart=True),
    SizeRow(50e6, 64, 1e-3, 20, 16_384, compute="fp32", by_heart=True),
    SizeRow(400e6, 32, 5e-4, 16, 16_384),
    SizeRow(2e9, 16, 3e-4, 16, 16_384),
    SizeRow(10e9, 16, 2e-4, 16, 8_192),
    SizeRow(20e9, 16, 2e-4, 16, 4_096),
    SizeRow(40e9, 16, 1e-4, 16, 2_048),
    SizeRow(math.inf, 16, 1e-4, 16, 1_024),
)

# Rows up to which so many epochs are run; the fewer the rows, the more often each is seen.
EPOCHS_BY_ROWS = ((100, 8), (500, 4), (20_000, 3), (100_000, 2), (math.inf, 1))
BY_HEART_EPOCHS_BY_ROWS = ((50, 60), (200, 40), (1_000, 20), (10_000, 5), (math.inf, 2))
# Up to four passes over text are nearly as good as text that is new (Muennighoff et al. 2023,
# arXiv:2305.16264).
TEXT_EPOCHS_BY_SEQUENCES = ((1_000, 4), (10_000, 2), (math.inf, 1))
TEXT_LENGTH = 2048  # tokens of a sequence of plain text, as far as the model was made for so many
SMALL_MODEL = 2e9  # parameters; below it, few rows are seen twice as often
CHECKPOINTING_FROM = 1e9  # parameters; below it, memory is not what is short
EVALUATIONS = 10  # a run
CHECKPOINTS = 4  # a run of a model that takes long
# Of the rate for answers, by method: who only learns to prefer must not forget how to answer. The sources
# trained all weights, where answers are learnt at about 2e-5.
#   dpo   Zephyr took 5e-7 (arXiv:2310.16944); LoRA takes about ten times as much as these.
#   orpo  learns answers too: 8e-6 (Hong et al. 2024, arXiv:2403.07691).
#   kto   5e-6 (Ethayarajh et al. 2024, arXiv:2402.01306): higher than for pairs, as each label says less.
#   reward  Llama 2 took 5e-6 and 1e-5 (arXiv:2307.09288); trl's own examples 1e-4 for LoRA.
#   grpo  DeepSeekMath took 1e-6 (arXiv:2402.03300), as trl does.
LEARNING_RATES = {"dpo": 0.05, "orpo": 0.4, "kto": 0.25, "reward": 0.5, "grpo": 0.05}
# Of the rate for an adapter, that for all weights: "LoRA Without Regret" (Schulman et al. 2025) found the
# best of the two ten apart over 14 models; Biderman et al. 2024 (arXiv:2405.09673) likewise.
FULL_LEARNING_RATE = 0.1
SCALE = 2.0  # of an adapter: what alpha 32 at rank 16 makes
# Rafailov et al. 2023 (arXiv:2305.18290), and for the others the papers above.
BETAS = {"dpo": 0.1, "orpo": 0.1, "kto": 0.1, "grpo": 0.04}
LEAST_BATCHES = {"kto": 2}  # rows of a micro-batch: one of them gets the answer of another
MAX_LENGTH_CAP = 4096  # tokens; longer rows are cut unless the request says otherwise


def resolve(
    params: dict[str, Any],
    *,
    parameters: int,
    rows: int,
    longest: int,
    context_length: int,
    tokens: int = 0,
    labels: Counter[bool] | None = None,
) -> dict[str, Any]:
    """Replace every `auto` of a fine-tune's params.

    Args:
        params: the validated params; what is not `auto` is kept.
        parameters: of the base model.
        rows: that are trained on.
        longest: tokens of the longest row.
        context_length: tokens the base model was made for.
        tokens: of all rows, for plain text, which is not learnt by its rows but in sequences that are full.
        labels: of kto, how many of the rows that are trained on are good and bad.

    Returns:
        every hyperparameter by the name of its param, and those that have none: lr_scheduler,
        weight_decay, max_grad_norm, compute_dtype, total_steps.
    """
    size = next(row for row in SIZES if parameters <= row.up_to)
    method = params["method"]
    if method in LEARNING_RATES:
        size = _of_preferences(size, LEARNING_RATES[method])
    if params["tuning"] == FULL:
        size = replace(size, learning_rate=size.learning_rate * FULL_LEARNING_RATE)
    names = _NAMES - {*ADAPTER_FIELDS} if params["tuning"] == FULL else _NAMES
    given = {name: params[name] for name in params if params[name] != AUTO and name in names}
    chosen = {**of_preset(params), **given}
    is_text = method == "pretraining"
    if is_text:
        longest = chosen.setdefault("max_length", min(context_length, TEXT_LENGTH))
        rows = max(1, math.ceil((tokens - 1) / (longest - 1)))
        chosen["assistant_only_loss"] = False
    if method == GRPO:
        size = replace(size, by_heart=False)  # what a reward prefers is found, and not known beforehand
        chosen |= settle_answers(params, chosen, longest=longest, context_length=context_length)
        longest += chosen["max_completion_length"]
    max_length = chosen.setdefault("max_length", enough_for(longest, context_length))
    batch, accumulation = _batches(chosen, size, rows, min(longest, max_length), method)
    chosen |= {"batch_size": batch, "gradient_accumulation_steps": accumulation}
    chosen["effective_batch_size"] = batch * accumulation
    chosen.setdefault("learning_rate", size.learning_rate * chosen.get("learning_rate_multiplier", 1.0))
    chosen["learning_rate_multiplier"] = chosen["learning_rate"] / size.learning_rate
    chosen.setdefault("epochs", _epochs(size, rows, is_text=is_text) * epochs_times(params))
    defaults = {
        **(_of_adapter(chosen, size) if params["tuning"] != FULL else {"bits": 16}),
        "packing": False,  # whether it pays is known where it is trained: worker/steps/speed_choices.py
        "gradient_checkpointing": parameters >= CHECKPOINTING_FROM,
        "lr_scheduler": params["training_args"].get("lr_scheduler_type", "cosine"),
        "weight_decay": params["training_args"].get("weight_decay", 0.0),
        "max_grad_norm": params["training_args"].get("max_grad_norm", 1.0),
        "compute_dtype": size.compute,
    }
    if method in BETAS:
        defaults["beta"] = BETAS[method]
    if labels is not None:
        defaults |= _weights(labels, params["training_args"])
    chosen = {**defaults, **chosen}
    return chosen | schedule(params, chosen, rows, checkpoints=1 if size.by_heart else CHECKPOINTS)


def _of_adapter(chosen: dict[str, Any], size: SizeRow) -> dict[str, Any]:
    rank = chosen.get("lora_rank", size.rank)
    return {
        "bits": AUTO,  # the memory that decides is known where it is trained
        "lora_rank": rank,
        "lora_alpha": SCALE * (math.sqrt(rank) if chosen.get("use_rslora") else rank),
        "lora_dropout": size.dropout,
        "lora_target_modules": "all-linear",
        "use_rslora": False,
    }


def _of_preferences(size: SizeRow, rate: float) -> SizeRow:
    """The line as it is for preferences: smaller steps, and two conversations are read for each row."""
    return replace(
        size,
        learning_rate=size.learning_rate * rate,
        micro_batch_tokens=size.micro_batch_tokens // 2,
        dropout=0.0,
    )


def _weights(labels: Counter[bool], given: dict[str, Any]) -> dict[str, float]:
    """Weights by which good and bad answers count as much in all (equation 8 of KTO's paper); one of them
    that is given leaves the other at 1."""
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    if not weights.keys() & given.keys() and labels[True] and labels[False]:
        rarer = "desirable_weight" if labels[True] < labels[False] else "undesirable_weight"
        weights[rarer] = max(labels.values()) / min(labels.values())
    return weights | {name: given[name] for name in weights if name in given}


def schedule(
    params: dict[str, Any], chosen: dict[str, Any], rows: int, *, checkpoints: int
) -> dict[str, Any]:
    """Count the steps, and place warm-up, evaluations and checkpoints in them.

    Args:
        params: as for `resolve`; what they give of these is kept.
        chosen: the hyperparameters, with batch_size, gradient_accumulation_steps and epochs.
        rows: that are trained on; when packed, the sequences made of them.
        checkpoints: how many to keep of the run, unless save_steps is given.

    Returns:
        total_steps, warmup_steps, eval_steps and save_steps; and the epochs that max_steps comes to.
    """
    # By GRPO a batch is one of answers, of which each prompt gets several.
    batches = math.ceil(rows * chosen.get("num_generations", 1) / chosen["batch_size"])
    steps_an_epoch = max(1, math.ceil(batches / chosen["gradient_accumulation_steps"]))
    total = params["max_steps"] or max(1, math.ceil(steps_an_epoch * chosen["epochs"]))
    auto = {
        "warmup_steps": min(100, math.ceil(total * 0.05)),
        "eval_steps": max(1, total // EVALUATIONS),
        "save_steps": max(1, math.ceil(total / checkpoints)),
    }
    given = {name: params[name] for name in auto if params[name] != AUTO}
    if params["max_steps"] and params["epochs"] == AUTO:  # told, and stored, as what they come to
        given["epochs"] = round(total / steps_an_epoch, 4)
    return {"total_steps": total, **auto, **given}


_NAMES = frozenset(
    {
        "method",
        "beta",
        "num_generations",
        "max_completion_length",
        "temperature",
        "max_length",
        "tuning",
        "preset",
        "bits",
        "epochs",
        "max_steps",
        "learning_rate",
        "learning_rate_multiplier",
        "effective_batch_size",
        "batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "warmup_steps",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "lora_target_modules",
        "lora_bias",
        "use_rslora",
        "use_dora",
        "training_args",
        "packing",
        "assistant_only_loss",
        "eval_steps",
        "early_stopping_patience",
        "save_steps",
    }
)


def enough_for(longest: int, context_length: int) -> int:
    """Enough for the longest row, in steps of 64, within what the model and its memory allow."""
    return min(context_length, MAX_LENGTH_CAP, max(64, math.ceil(longest / 64) * 64))


def _batches(chosen: dict[str, Any], size: SizeRow, rows: int, longest: int, method: str) -> tuple[int, int]:
    """Split the effective batch into micro-batches of at least so many rows; it, or one of the two that make
    it, may be given."""
    least = LEAST_BATCHES.get(method, 1)
    fitting = max(least, size.micro_batch_tokens // max(1, longest))
    if method == GRPO:
        return batches_of_answers(chosen, prompts=rows, fitting=fitting)
    given = chosen.get("effective_batch_size")
    if given is not None:
        dividing = [each for each in range(least, given + 1) if given % each == 0]
        micro = max((each for each in dividing if each <= fitting), default=dividing[0])
        return micro, given // micro
    # With few rows, a smaller batch, so that an epoch is more than one or two steps.
    effective = min(size.effective_batch, rows if size.by_heart else max(1, rows // 8))
    accumulation = chosen.get("gradient_accumulation_steps")
    batch = chosen.get("batch_size")
    if batch is None:
        wanted = effective if accumulation is None else max(1, effective // accumulation)
        batch = max(least, min(wanted, fitting, rows))
    if accumulation is None:
        accumulation = max(1, round(effective / batch))
    return batch, accumulation


def _epochs(size: SizeRow, rows: int, *, is_text: bool) -> float:
    table: Sequence[tuple[float, float]] = BY_HEART_EPOCHS_BY_ROWS if size.by_heart else EPOCHS_BY_ROWS
    if is_text:
        table = TEXT_EPOCHS_BY_SEQUENCES
    epochs = next(epochs for limit, epochs in table if rows <= limit)
    if not is_text and not size.by_heart and size.up_to <= SMALL_MODEL and rows <= 500:
        epochs *= 2
    return float(epochs)
