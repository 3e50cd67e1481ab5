"""How large a model is, and what of it: read from its config and the names and shapes of its tensors.

That is in the first kilobytes of its files, so nothing is loaded, and from a hub nothing else is fetched.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training_data.stored_quantization import stored_quantization

ALL_LINEAR = "all-linear"
PACKED_BESIDE = ("qzeros", "scales", "g_idx")  # what GPTQ and AWQ store with a matrix of packed weights
# How the families call what is no linear layer although it is a matrix: embeddings, and the output layer.
EMBEDDINGS = ("embed", "wte", "wpe")
HEADS = ("lm_head", "embed_out")
# transformers holds the experts of a layer in one tensor, and the two that are gated in a joined one: there
# peft gives each of both an adapter of the joined width.
EXPERTS = ".experts."
JOINED = ("gate_proj", "up_proj", "w1", "w3")


@dataclass(frozen=True)
class Matrix:
    """A weight by its module's name; `outputs` × `inputs`."""

    name: str
    outputs: int
    inputs: int

    @property
    def parameters(self) -> int:
        return self.outputs * self.inputs


@dataclass(frozen=True)
class ModelShape:
    """Args:
    parameters: all of them; tied weights once.
    linear: the layers that an adapter can stand beside.
    embeddings: matrices that are looked up; the output layer is in neither.
    biases: how many there are in each module, by its name.
    hidden, intermediate: width of a token between the layers, and inside a layer's MLP.
    attention: width of a token's queries, which is not always `hidden`.
    """

    parameters: int
    linear: tuple[Matrix, ...]
    embeddings: tuple[Matrix, ...]
    biases: Mapping[str, int]
    layers: int
    hidden: int
    intermediate: int
    attention: int
    vocabulary: int
    gated: bool

    @property
    def linear_parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.linear)

    def trainable(self, chosen: Mapping[str, Any]) -> int:
        """How many weights learn, by the hyperparameters that are chosen."""
        if chosen.get("tuning", "lora") == "full":
            return self.parameters
        rank, targets = int(chosen["lora_rank"]), list(self.targets(chosen["lora_target_modules"]))
        adapters = sum(rank * (_adapted_outputs(matrix) + matrix.inputs) for matrix in targets)
        magnitudes = sum(matrix.outputs for matrix in targets) if chosen.get("use_dora") else 0
        return adapters + magnitudes + self._biases(chosen.get("lora_bias", "none"), targets)

    def targets(self, named: str | Sequence[str]) -> Iterable[Matrix]:
        """The matrices that get an adapter: all linear layers, or those whose names end so."""
        if named == ALL_LINEAR or isinstance(named, str):
            return self.linear
        return [
            matrix
            for matrix in (*self.linear, *self.embeddings)
            if any(matrix.name == name or matrix.name.endswith(f".{name}") for name in named)
        ]

    def linear_names(self) -> list[str]:
        """How the linear layers of its blocks are called: q_proj, v_proj, …"""
        return sorted({matrix.name.rpartition(".")[2] for matrix in self.linear})

    def _biases(self, wanted: str, targets: Iterable[Matrix]) -> int:
        if wanted == "all":
            return sum(self.biases.values())
        return sum(self.biases.get(matrix.name, 0) for matrix in targets) if wanted == "lora_only" else 0


def read_shape(config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> ModelShape:
    """Describe a model.

    Args:
        config: its config.json.
        tensors: the shape of each tensor of its files, by name.
    """
    text = {**config, **(config.get("text_config") or {})}
    tensors = _unpacked(config, tensors)
    matrices = {
        name.removesuffix(".weight"): Matrix(name.removesuffix(".weight"), shape[0], shape[1])
        for name, shape in tensors.items()
        if len(shape) == 2 and name.endswith(".weight")
    }
    linear = tuple(matrix for name, matrix in matrices.items() if _is_linear(name))
    hidden = _first(text, ("hidden_size", "n_embd", "d_model"), 1)
    heads = _first(text, ("num_attention_heads", "n_head"), 1)
    return ModelShape(
        parameters=sum(math.prod(shape) for shape in tensors.values()),
        linear=linear,
        embeddings=tuple(matrix for name, matrix in matrices.items() if _is_embedding(name)),
        biases={
            name.removesuffix(".bias"): math.prod(shape)
            for name, shape in tensors.items()
            if name.endswith(".bias")
        },
        layers=_first(text, ("num_hidden_layers", "n_layer"), 1),
        hidden=hidden,
        intermediate=_first(text, ("intermediate_size", "n_inner"), 4 * hidden),
        attention=heads * _first(text, ("head_dim",), hidden // heads),
        vocabulary=_first(text, ("vocab_size",), 1),
        gated=any("gate" in name for name in matrices),
    )


def _unpacked(config: Mapping[str, Any], tensors: Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int]]:
    """The shapes as they were before GPTQ or AWQ packed several weights into each int32."""
    stored = stored_quantization(config)
    if stored is None:
        return tensors
    found: dict[str, Sequence[int]] = {}
    for name, shape in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "qweight":  # GPTQ packs along the inputs, AWQ along the outputs
            inputs, outputs = shape
            if stored.method == "gptq":
                inputs = inputs * 32 // stored.bits
            else:
                outputs = outputs * 32 // stored.bits
            found[f"{module}.weight"] = (outputs, inputs)
        elif kind not in PACKED_BESIDE:
            found[name] = shape
    return found


def _adapted_outputs(matrix: Matrix) -> int:
    joined = EXPERTS in matrix.name and matrix.name.endswith(JOINED)
    return matrix.outputs * (2 if joined else 1)


def _is_embedding(name: str) -> bool:
    return any(each in name.rpartition(".")[2] for each in EMBEDDINGS)


def _is_linear(name: str) -> bool:
    return not (_is_embedding(name) or name.rpartition(".")[2] in HEADS or "norm" in name.rpartition(".")[2])


def _first(config: Mapping[str, Any], names: Iterable[str], default: int) -> int:
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), default)
