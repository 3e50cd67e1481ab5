"""BERT's encoder, for embeddings. By torch alone: to import transformers takes as long as to embed a hundred
chunks.

Source: Devlin et al. 2018, arXiv:1810.04805, with the layer norms after each residual as there; the names of
the weights are Hugging Face's.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

WEIGHTS, CONFIG = "model.safetensors", "config.json"
INNER = "intermediate.dense"
PROJECTIONS = ("attention.self.joined", "attention.output.dense", INNER, "output.dense")
# For how many tokens at once oneDNN lays weights out.
USUAL_TOKENS = 2048


class Bert:
    """The encoder of a folder in Hugging Face's layout.

    Raises:
        OSError, ValueError, LookupError: the folder holds no BERT, or one with another activation than GELU.
    """

    def __init__(self, folder: Path, *, device: str, dtype: torch.dtype) -> None:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if (config["model_type"], config["hidden_act"]) != ("bert", "gelu"):
            raise ValueError(f"{folder} holds no BERT with GELU")
        self.longest: int = config["max_position_embeddings"]
        self.device, self.dtype = device, dtype
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._weights = {
            name: weight.to(device, dtype)
            for name, weight in load_file(folder / WEIGHTS).items()
            if weight.is_floating_point()
        }
        self._layers = [f"encoder.layer.{number}." for number in range(config["num_hidden_layers"])]
        for layer in self._layers:
            self._join_projections(f"{layer}attention.self.")
        self._linear = {
            f"{layer}{name}": self._product(f"{layer}{name}", gelu=name == INNER)
            for layer in self._layers
            for name in PROJECTIONS
        }

    def encode(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The last layer's states.

        Args:
            ids: (batch, seq).
            mask: (batch, seq), False where a row is padded; None: nowhere.
        Returns:
            (batch, seq, hidden).
        """
        weights = self._weights
        states = functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
        states = states + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        states = states + weights["embeddings.token_type_embeddings.weight"][0]
        states = self._norm("embeddings.LayerNorm", states)
        seen = mask[:, None, None, :] if mask is not None else None  # by each head and query alike
        for layer in self._layers:
            attended = self._linear[f"{layer}attention.output.dense"](self._attend(layer, states, seen))
            states = self._norm(f"{layer}attention.output.LayerNorm", attended + states)
            inner = self._linear[f"{layer}{INNER}"](states)
            states = self._norm(
                f"{layer}output.LayerNorm", self._linear[f"{layer}output.dense"](inner) + states
            )
        return states

    def _attend(self, layer: str, states: Tensor, seen: Tensor | None) -> Tensor:
        joined = self._linear[f"{layer}attention.self.joined"](states)
        # (batch, seq, 3 x hidden) -> 3 of (batch, heads, seq, hidden / heads)
        query, key, value = joined.unflatten(-1, (3, self._heads, -1)).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return found.transpose(1, 2).flatten(2)

    def _join_projections(self, attention: str) -> None:
        """Make one matrix of those for queries, keys and values: one wide product is faster than three."""
        for kind in ("weight", "bias"):
            parts = [self._weights.pop(f"{attention}{part}.{kind}") for part in ("query", "key", "value")]
            self._weights[f"{attention}joined.{kind}"] = torch.cat(parts)

    def _product(self, name: str, *, gelu: bool) -> Callable[[Tensor], Tensor]:
        """What takes states through a linear layer, and through GELU if that follows."""
        weight, bias = self._weights.pop(f"{name}.weight"), self._weights.pop(f"{name}.bias")
        if self.device == "cpu" and self.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available():
            return _by_onednn(weight, bias, gelu=gelu)
        if gelu:
            return lambda states: functional.gelu(functional.linear(states, weight, bias))
        return lambda states: functional.linear(states, weight, bias)

    def _norm(self, name: str, states: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(states, weight.shape, weight, bias, self._epsilon)


def _by_onednn(weight: Tensor, bias: Tensor, *, gelu: bool) -> Callable[[Tensor], Tensor]:
    """A linear layer as torch's own compiler has it of weights that stay: they are laid out once as oneDNN's
    kernels read them, and bias and GELU are done in the product's pass over memory."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_TOKENS)
    multiply = torch.ops.mkldnn._linear_pointwise
    after, algorithm = ("gelu", "none") if gelu else ("none", "")
    return lambda states: multiply(states, packed, bias, after, [], algorithm)
