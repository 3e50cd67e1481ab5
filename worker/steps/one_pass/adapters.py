"""A LoRA adapter's files, and what merging does to some rows of a base's matrix.

The operations, their order and their precision are those of peft's `merge` in fp32, so that the rows come out
to the bit as from a merge of the whole model: B·A first, then alpha/r, added once. Rows go by themselves: in
DoRA too, whose norms are of rows.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from worker.steps.one_pass.refusals import NeedsThreeSteps

PREFIX = "base_model.model."
LINEAR_A, LINEAR_B = ".lora_A.weight", ".lora_B.weight"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
MAGNITUDES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")
# What an adapter_config.json may say without changing how it is merged. Anything else that says something is
# for peft itself, which knows what it means.
OF_NO_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "loftq_config", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type", "ensure_weight_tying",
}  # fmt: skip
UNDERSTOOD = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora"}
ALLOWED = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}


@dataclass(frozen=True)
class Delta:
    """What an adapter adds to one matrix of the base.

    Args:
        a: (rank, columns) in fp32.
        b: (rows, rank) in fp32.
        magnitude: (rows,) in fp32, for DoRA.
    """

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    magnitude: torch.Tensor | None

    def merged(self, base: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        """Merge some rows of the matrix.

        Args:
            base: (n, columns) in fp32; may be changed.
            rows: which of the matrix's rows these are.

        Returns:
            (n, columns) in fp32.
        """
        delta = (self.b[rows] @ self.a).mul_(self.scaling)
        base += delta
        if self.magnitude is None:
            return base
        norms = torch.linalg.norm(base, dim=1)
        return base.mul_((self.magnitude[rows] / norms).view(-1, 1))


@dataclass(frozen=True)
class _Parts:
    """Where in the file a module's matrices are."""

    a: str
    b: str
    magnitude: str | None
    is_embedding: bool


class Adapter:
    """A folder that peft's `save_pretrained` wrote. Matrices are read when they are asked for.

    Raises:
        NeedsThreeSteps: it holds more than LoRA, rsLoRA or DoRA on matrices.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        _check(config)
        self._alpha, self._is_rslora = float(config["lora_alpha"]), bool(config.get("use_rslora"))
        self._file = folder / "adapter_model.safetensors"
        if not self._file.is_file():
            raise NeedsThreeSteps("the adapter is not stored as safetensors")
        with safe_open(self._file, "pt") as file:
            self._parts = _modules(set(file.keys()))
        if bool(config.get("use_dora")) != any(parts.magnitude for parts in self._parts.values()):
            raise NeedsThreeSteps("the adapter's configuration and weights disagree about DoRA")

    @property
    def names(self) -> set[str]:
        """The base's tensors that it changes."""
        return set(self._parts)

    @property
    def embeddings(self) -> list[str]:
        """Those of them that are read by tokens, and not multiplied with."""
        return sorted(name for name, parts in self._parts.items() if parts.is_embedding)

    def delta(self, name: str) -> Delta | None:
        """What is added to the tensor `name` of the base; None: it stays as it is."""
        parts = self._parts.get(name)
        if parts is None:
            return None
        with safe_open(self._file, "pt") as file:
            a, b = file.get_tensor(parts.a).float(), file.get_tensor(parts.b).float()
            magnitude = file.get_tensor(parts.magnitude).float() if parts.magnitude else None
        scaling = self._alpha / (math.sqrt(a.shape[0]) if self._is_rslora else a.shape[0])
        if parts.is_embedding:  # stored as (rank, tokens) and (width, rank); the matrix is (tokens, width)
            a, b = b.T, a.T
        return Delta(a, b, scaling, magnitude)


def _check(config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise NeedsThreeSteps(f"the adapter is of the type {config.get('peft_type')}, not LORA")
    for field, value in config.items():
        if field in OF_NO_EFFECT | UNDERSTOOD or value in ALLOWED.get(field, (None, False, 0, [], {})):
            continue
        raise NeedsThreeSteps(f"the adapter's configuration sets {field}")


def _modules(keys: set[str]) -> dict[str, _Parts]:
    """Pair up the matrices of each module, under the name of the base's tensor."""
    found: dict[str, _Parts] = {}
    taken: set[str] = set()
    for key in keys:
        for ending, other in ((LINEAR_A, LINEAR_B), (EMBEDDING_A, EMBEDDING_B)):
            module = key.removesuffix(ending)
            if module == key or module + other not in keys:
                continue
            magnitude = next((module + name for name in MAGNITUDES if module + name in keys), None)
            found[f"{module.removeprefix(PREFIX)}.weight"] = _Parts(
                key, module + other, magnitude, is_embedding=ending == EMBEDDING_A
            )
            taken |= {key, module + other, magnitude or key}
    for key in sorted(keys - taken):
        raise NeedsThreeSteps(f"the adapter holds {key}, which is no LoRA matrix")
    return found
