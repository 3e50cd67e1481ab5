"""What a fine-tune takes of memory and disk, by arithmetic over the model's shape; no torch is asked.

Sources: NF4 with double quantisation, Dettmers et al. 2023 (arXiv:2305.14314, section 3); the tensors that
autograd keeps of a layer, counted through its own hooks on Llama with LoRA (docs/experiments.md, "What a
fine-tune takes"); Adam's two moments, Kingma and Ba 2015; the output layer, in trl's tiles or as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training_data.answer_batches import GRPO, WRITTEN_AT_ONCE
from training_data.model_shape import ModelShape
from training_data.placement import ALONE, Placement

MIB = 1024**2
GIB = 1024**3
# 4 bits, an 8-bit scale for each 64 weights, and a 32-bit one for each 256 of those scales.
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
INT8_BYTES = 1 + 4 / 1024  # and a scale a row, of which a thousand weights is a small one
HEAD_TOKENS = 4096  # that trl's fused head projects at once
HEAD_WIDTH = 32_768  # and the part of the vocabulary
# What the head's arithmetic holds of a tile besides, in float32: without Triton, torch does it in steps.
HEAD_COPIES = {"cpu": 6, "cuda": 0}
# Methods whose logits may be held as a whole on a CPU (`worker/steps/whole_logits.py`), but for a weighting
# that needs more of them; some rows at a time go through float32, with so many copies.
WHOLE_LOGITS = ("supervised", "pretraining", "dpo", "kto")
BLOCK_BYTES, BLOCK_COPIES = 16 * MIB, 4
# Python with torch, transformers, peft, trl and bitsandbytes imported; on a GPU, CUDA's libraries as well.
PROCESS_BYTES = {"cpu": 500 * MIB, "cuda": 3 * GIB}
# Methods that put two answers of a row through the model; of kto, one is another row's.
TWO_CONVERSATIONS = ("dpo", "orpo", "kto", "reward")
# What CUDA and its libraries keep of a device for one process.
CONTEXT_BYTES = 600 * MIB
# glibc hands back little of what a layer's steps in between took: measured, as much again as they keep, up to
# about a gigabyte, with checkpointing or not.
HEAP_SHARE, HEAP_MOST = 1.1, 1 * GIB
FRAGMENTATION = 0.05  # of a GPU's memory, with expandable segments
QUANTIZED_BITS = {"F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_K_M": 5.7, "Q4_K_M": 4.9}
OTHER_QUANTIZED_BITS = 6.6  # of those that are smaller, with embeddings that stay larger
# The weights that learn and Adam's two moments, in float32, and while one is written another stays.
CHECKPOINT_BYTES = 12


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for, in one place; the sum is the peak."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def device_memory(
    shape: ModelShape, chosen: Mapping[str, Any], longest: int, placement: Placement = ALONE
) -> Memory:
    """What a training takes of a GPU, of each that it uses.

    Args:
        chosen: the hyperparameters, resolved; of the rows, those of one process.
        longest: tokens of the longest row that is trained on or evaluated.
    """
    parts = _placed(_training(shape, chosen, longest, "cuda"), shape, chosen, placement)
    parts["fragmentation"] = int(FRAGMENTATION * sum(parts.values()))
    return Memory({**parts, "cuda": CONTEXT_BYTES})


def host_memory(
    shape: ModelShape, chosen: Mapping[str, Any], longest: int, *, gpu: bool, placement: Placement = ALONE
) -> Memory:
    """What the same training takes of the host's memory, all its processes together: all of it without a GPU,
    little with one.
    """
    ranks = placement.division.ranks
    if gpu:
        # A tensor at a time goes through, and its file is mapped.
        loading = min(2 * shape.parameters, 4 * GIB)
        if placement.division.sharded and chosen["bits"] == 4:  # packed as a whole, and then divided
            loading += weight_bytes(shape, chosen)
        return Memory({"process": ranks * PROCESS_BYTES["cuda"], "loading": ranks * loading})
    parts = _placed(_training(shape, chosen, longest, "cpu"), shape, chosen, placement)
    held = _tokens(chosen, longest) * shape.layers * _bytes_of_layer(shape, chosen, longest)
    parts |= {"heap": min(int(HEAP_SHARE * held), HEAP_MOST), "process": PROCESS_BYTES["cpu"]}
    return Memory({name: ranks * bytes_ for name, bytes_ in parts.items()})


def _placed(
    parts: dict[str, int], shape: ModelShape, chosen: Mapping[str, Any], placement: Placement
) -> dict[str, int]:
    """What of it falls to each process, or to each GPU among which one process spreads its layers."""
    division = placement.division
    if placement.spread > 1:  # the output layer is on one of them
        return {
            name: bytes_ // (placement.spread if name != "logits" else 1) for name, bytes_ in parts.items()
        }
    if division.ranks == 1:
        return parts
    full = chosen.get("tuning", "lora") == "full"
    if not division.sharded:
        # DDP sends gradients in buckets, which lie beside them.
        return {**parts, "averaging": parts["gradients"]}
    shared = ("weights", "reference", "gradients", "optimizer") if full else ("weights", "reference")
    parts = {name: bytes_ // (division.ranks if name in shared else 1) for name, bytes_ in parts.items()}
    # Whole at a time: the layer that is computed, the next one, and what belongs to no layer.
    layers = 2 * shape.linear_parameters // max(1, shape.layers)
    each = NF4_BYTES if chosen["bits"] == 4 else compute_bytes(chosen)
    whole = int(each * layers) + compute_bytes(chosen) * (shape.parameters - shape.linear_parameters)
    return {**parts, "gathered": whole, "averaging": 0 if full else parts["gradients"]}


def export_memory(shape: ModelShape) -> int:
    """What merging and verifying take of the host's memory at least: the model in 16 bits, twice read."""
    return PROCESS_BYTES["cpu"] + 3 * shape.parameters


def _training(shape: ModelShape, chosen: Mapping[str, Any], longest: int, device: str) -> dict[str, int]:
    trainable = shape.trainable(chosen)
    full = chosen.get("tuning", "lora") == "full"
    # A whole model is trained in float32 where that fits, and else in what it is computed in.
    learnt_in = int(chosen.get("learnt_in_bytes", 4)) if full else 4
    copies = 0 if compute_bytes(chosen) == learnt_in else 2  # autocast's, of the weights that learn
    return {
        "weights": learnt_in * shape.parameters if full else weight_bytes(shape, chosen),
        "adapter": 0 if full else 4 * trainable,
        "gradients": learnt_in * trainable,
        "optimizer": 2 * learnt_in * trainable,
        "reference": learnt_in * shape.parameters if full and _is_held_to_a_copy(chosen) else 0,
        # Answers are written before, and never while, anything is learnt of them.
        "activations": max(
            int(activation_bytes(shape, chosen, longest) + copies * trainable),
            _written_bytes(shape, chosen, longest),
        ),
        "logits": _head_bytes(shape, chosen, longest, device),
    }


def _is_held_to_a_copy(chosen: Mapping[str, Any]) -> bool:
    return chosen.get("method") == GRPO and bool(chosen.get("beta"))


def _written_bytes(shape: ModelShape, chosen: Mapping[str, Any], longest: int) -> int:
    """The keys and values of the answers that are written at once, of each layer."""
    if chosen.get("method") != GRPO:
        return 0
    effective = int(chosen["batch_size"]) * int(chosen["gradient_accumulation_steps"])
    tokens = min(WRITTEN_AT_ONCE * int(chosen["batch_size"]), effective) * _length(chosen, longest)
    keys = (matrix.outputs for matrix in shape.linear if matrix.name.endswith("k_proj"))
    return tokens * shape.layers * 2 * next(keys, shape.attention) * compute_bytes(chosen)


def weight_bytes(shape: ModelShape, chosen: Mapping[str, Any]) -> int:
    """The frozen base, as it is loaded; what is no linear layer is never quantised."""
    each = {4: NF4_BYTES, 8: INT8_BYTES, 16: compute_bytes(chosen)}[int(chosen["bits"])]
    linear = shape.linear_parameters
    largest = max((matrix.parameters for matrix in shape.linear), default=0)
    unpacked = compute_bytes(chosen) * largest if chosen["bits"] != 16 else 0
    return int(linear * each + (shape.parameters - linear) * compute_bytes(chosen) + unpacked)


def activation_bytes(shape: ModelShape, chosen: Mapping[str, Any], longest: int) -> float:
    """What the forward pass keeps for the backward pass, at the largest micro-batch.

    With checkpointing, each layer's input, what its attention makes where that is not computed again, and one
    layer's worth while the rest is.
    """
    tokens, layer = _tokens(chosen, longest), _bytes_of_layer(shape, chosen, longest)
    if chosen["gradient_checkpointing"]:
        attended = shape.attention if chosen.get("selective_checkpointing") else 0
        return float(tokens * (shape.layers * compute_bytes(chosen) * (shape.hidden + attended) + layer))
    return float(tokens * shape.layers * layer)


def compute_bytes(chosen: Mapping[str, Any]) -> int:
    return 4 if chosen["compute_dtype"] in ("fp32", "float32") else 2


def _tokens(chosen: Mapping[str, Any], longest: int) -> int:
    conversations = 2 if chosen.get("method") in TWO_CONVERSATIONS else 1
    return int(chosen["batch_size"]) * _length(chosen, longest) * conversations


def _length(chosen: Mapping[str, Any], longest: int) -> int:
    """Of the longest sequence in a micro-batch, to which the others are padded."""
    if chosen.get("packing"):
        return int(chosen.get("packed_length", chosen["max_length"]))
    return int(min(longest, chosen["max_length"]))


def _bytes_of_layer(shape: ModelShape, chosen: Mapping[str, Any], longest: int) -> float:
    """What autograd keeps of one layer for one token.

    In float32: both norms' inputs and outputs (4 hidden), queries, keys, values and what attention makes of
    them (4 attention), the MLP's inner tensors, the adapters' inner ones, and the mask's row. Under autocast
    the norms' inputs stay in float32, and each layer with an adapter has a copy of its input of its own.
    """
    hidden, attention = shape.hidden, shape.attention
    inner = (4 if shape.gated else 2) * shape.intermediate
    adapters = 7 * chosen["lora_rank"] if chosen.get("tuning", "lora") == "lora" else 0
    mask = 0 if chosen.get("attention") == "rows" else _length(chosen, longest)
    if compute_bytes(chosen) == 4:
        kept: float = 4 * (4 * hidden + 4 * attention + inner + adapters + mask)
    else:
        kept = 8 * hidden + 2 * (5 * hidden + 5 * attention + inner + adapters + mask)
    if chosen.get("lora_dropout"):
        kept += (compute_bytes(chosen) + 1) * (5 * hidden + attention + shape.intermediate)
    if chosen.get("use_dora"):  # what each layer gives, before its magnitude and after
        kept += 2 * compute_bytes(chosen) * sum(each.outputs for each in shape.linear) / shape.layers
    return float(kept)


def holds_whole_logits(shape: ModelShape, chosen: Mapping[str, Any], longest: int) -> bool:
    """Whether a training on a CPU holds the logits of all tokens: where that takes no more than tiles do."""
    able = chosen.get("method") in WHOLE_LOGITS and not chosen.get("training_args", {}).get("use_weighting")
    return able and whole_logits_bytes(shape, chosen, longest) <= tiles_bytes(shape, chosen, longest, "cpu")


def whole_logits_bytes(shape: ModelShape, chosen: Mapping[str, Any], longest: int) -> int:
    """The logits, which become their own gradient, and what some rows of them take in float32 meanwhile."""
    tokens = _tokens(chosen, longest)
    rows = min(tokens, whole_logits_rows(shape.vocabulary))
    return tokens * shape.vocabulary * compute_bytes(chosen) + 4 * rows * shape.vocabulary * BLOCK_COPIES


def whole_logits_rows(vocabulary: int) -> int:
    """How many rows of them go through float32 at once."""
    return max(1, BLOCK_BYTES // (4 * vocabulary))


def _head_bytes(shape: ModelShape, chosen: Mapping[str, Any], longest: int, device: str) -> int:
    if device == "cpu" and holds_whole_logits(shape, chosen, longest):
        head = whole_logits_bytes(shape, chosen, longest)
    else:
        head = tiles_bytes(shape, chosen, longest, device)
    return head + 4 * _tokens(chosen, longest) * shape.hidden


def tiles_bytes(shape: ModelShape, chosen: Mapping[str, Any], longest: int, device: str) -> int:
    tokens = _tokens(chosen, longest)
    tile = min(tokens, HEAD_TOKENS)
    used = min(HEAD_WIDTH, shape.vocabulary)
    # The buffer is for a whole tile, and of the host's memory only what is written to counts.
    buffer = tile * (HEAD_WIDTH if device == "cuda" else used) * compute_bytes(chosen)
    return buffer + tile * used * 4 * HEAD_COPIES[device]


def quantized_bytes(parameters: int, quantization: str) -> int:
    return int(parameters * QUANTIZED_BITS.get(quantization, OTHER_QUANTIZED_BITS) / 8)


def disk_use(
    shape: ModelShape,
    chosen: Mapping[str, Any],
    *,
    quantizations: Sequence[str],
    keep: int,
    rows_bytes: int,
    adapter_alone: bool = False,
) -> dict[str, int]:
    """Bytes under the storage root from the first step through publishing, by what they are.

    Args:
        adapter_alone: nothing is merged: the base's quantised files are those of the cache.
    """
    trainable = shape.trainable(chosen)
    merged = 0 if adapter_alone else 2 * shape.parameters
    made = sum(quantized_bytes(shape.parameters, name) for name in quantizations)
    return {
        "rows": 2 * rows_bytes,
        "checkpoints": CHECKPOINT_BYTES * trainable * (keep + 2),
        "trained": min(4 * trainable, 2 * shape.parameters),  # a whole model is kept in 16 bits
        "merged": merged,
        "full_gguf": merged,
        "quantizations": 2 * trainable if adapter_alone else made,
    }


def cache_use(shape: ModelShape, *, quantizations: Sequence[str], downloaded: bool) -> dict[str, int]:
    """Bytes in the cache: the base, unless it is here, and its own quantised files, to verify against."""
    return {
        "base": 0 if downloaded else 2 * shape.parameters,
        "base_quantizations": sum(quantized_bytes(shape.parameters, name) for name in quantizations),
    }
