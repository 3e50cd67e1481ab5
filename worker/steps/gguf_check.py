"""Look into a GGUF file: whose weights it holds, how often the adapter is in them, and what its header says.

Questions to a server tell that a file is wrong; this tells what is wrong with it. One finding stands by
itself: how many times the adapter was merged, which is measured to a few hundredths in any quantisation.

A file's rows F are held against the base's W and what the adapter adds, D, by least squares on both:

    F = a·W + n·D + rest

n is 1 in a sound file, 0 where the adapter was not merged, 2 where it was merged twice; in the file of a base
that an adapter is served beside it is 0. The quantisation's error is in the rest, and what it does to the
scale in a, so that neither moves n.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training_data.json_files import read_json
from worker.steps.trained_weights import SampledMatrix

if TYPE_CHECKING:
    import numpy as np
    import torch

# n is told where its standard error is at most this; a quarter off is refused.
CERTAIN = 0.05
MERGED_TOLERANCE = 0.25
# Q2_K explains 0.9 of its rows; weights of another model explain nothing.
SAME_WEIGHTS = 0.5
# Families whose q and k llama.cpp wants with the two halves of each head interleaved, by config.json's name.
INTERLEAVED = ("llama", "mistral")
INTERLEAVED_TENSORS = ("attn_q.weight", "attn_k.weight")
DEFAULT_ROPE = 10_000.0

EXPORT_AGAIN = "Export again from the adapter and its base."


@dataclass(frozen=True)
class Matched:
    """How one matrix of a file fits.

    Args:
        merged: n of the formula above; None without an adapter, or where it cannot be told.
        explained: share of the file's rows (by squares) that W and D make up.
        problem: what is wrong with the order of the rows or columns, if anything is.
    """

    tensor: str
    merged: float | None
    explained: float
    problem: str | None


@dataclass(frozen=True)
class Findings:
    """What was found in a file.

    Args:
        adapter_merged: how many times, of the matrix that is furthest from once; None: not measured.
        certain: problems that refuse the file by themselves.
        likely: what else looks wrong: it explains a file that answers otherwise.
    """

    adapter_merged: float | None
    certain: list[str]
    likely: list[str]


class GGUFCheck:
    """Checks the files of one model.

    Args:
        model: a folder with config.json: of the base, or of the whole model.
        name: of the base, for people.
        samples: rows of the trained weights.
        vocabulary: how many tokens the training's tokenizer has.
        merges: and how many merges; None: it is no BPE.
        beside: the adapter is served beside the file, which holds the untouched base.
    """

    def __init__(
        self,
        model: Path,
        name: str,
        samples: list[SampledMatrix],
        *,
        vocabulary: int,
        merges: int | None,
        beside: bool = False,
    ) -> None:
        self._config = read_json(model / "config.json")
        self._name, self._samples = name, samples
        self._vocabulary, self._merges = vocabulary, merges
        self._beside = beside

    def look(self, path: Path) -> Findings:
        from gguf import GGUFReader

        reader: Any = GGUFReader(path)
        matched = self._matched(reader)
        merged = [each for each in matched if each.merged is not None]
        wanted = 0 if self._beside else 1
        furthest = max(merged, key=lambda each: abs((each.merged or 0.0) - wanted), default=None)
        certain = [*self._tokenizer_problems(reader), *self._rope_problems(reader)]
        if furthest is not None and abs((furthest.merged or 0.0) - wanted) > MERGED_TOLERANCE:
            certain.append(_beside_problem(furthest) if self._beside else _merge_problem(merged, furthest))
        likely = self._header_problems(reader)
        # What adapters share has but one right content, which no training changes.
        (certain if self._beside else likely).extend(self._weight_problems(matched))
        return Findings(None if furthest is None else furthest.merged, certain, likely)

    # --- weights ------------------------------------------------------------------------------------

    def _matched(self, reader: Any) -> list[Matched]:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        architecture = _value(reader, "general.architecture")
        found = {name: key for key, name in MODEL_ARCH_NAMES.items()}.get(architecture)
        blocks = _value(reader, f"{architecture}.block_count")
        if found is None or blocks is None:
            return []
        names = get_tensor_name_map(found, int(blocks))
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        matched = []
        for sample in self._samples:
            tensor = tensors.get(f"{names.get_name(sample.name)}.weight")
            # Shapes are told the other way round: columns first.
            if tensor is not None and len(tensor.shape) == 2 and int(tensor.shape[0]) == sample.base.shape[1]:
                matched.append(self._match(tensor, sample))
        return matched

    def _match(self, tensor: Any, sample: SampledMatrix) -> Matched:
        heads = self._heads(tensor.name)
        plain, interleaved = sample.rows, _interleaved(sample.rows, int(tensor.shape[1]), heads)
        expected, other = (interleaved, plain) if self._is_interleaved(tensor.name) else (plain, interleaved)
        base = sample.base.numpy()
        added = None if sample.added is None else sample.added.numpy()
        merged, explained = _fit(_rows(tensor, expected), base, added)
        if explained >= SAME_WEIGHTS:
            return Matched(tensor.name, merged, explained, None)
        problem = None
        if other != expected and _fit(_rows(tensor, other), base, added)[1] >= SAME_WEIGHTS:
            problem = "has the rows of its heads in another order than llama.cpp wants for this family"
        elif sample.columns is not None and self._explains(sample.columns, tensor, plain):
            problem = "is transposed"
        return Matched(tensor.name, None, explained, problem)

    @staticmethod
    def _explains(columns: "torch.Tensor", tensor: Any, rows: list[int]) -> bool:
        """What the adapter adds to the columns is not kept; the base shows well enough through it."""
        return _fit(_rows(tensor, rows), columns.numpy(), None)[1] >= SAME_WEIGHTS

    def _is_interleaved(self, tensor: str) -> bool:
        return self._config.get("model_type") in INTERLEAVED and tensor.endswith(INTERLEAVED_TENSORS)

    def _heads(self, tensor: str) -> int:
        heads = int(self._config.get("num_attention_heads") or 1)
        return int(self._config.get("num_key_value_heads") or heads) if "attn_k" in tensor else heads

    def _weight_problems(self, matched: list[Matched]) -> list[str]:
        problems = [f"{each.tensor} {each.problem}" for each in matched if each.problem]
        others = [each for each in matched if each.explained < SAME_WEIGHTS and not each.problem]
        if others and len(others) == len(matched):
            problems.append(
                f"the file's weights are not those of {self._name}: it was made from another base"
            )
        elif others:
            names = ", ".join(each.tensor for each in others)
            problems.append(f"these tensors are neither the base's nor the adapter's: {names}")
        return problems

    # --- the header ---------------------------------------------------------------------------------

    def _tokenizer_problems(self, reader: Any) -> list[str]:
        problems = []
        tokens = reader.get_field("tokenizer.ggml.tokens")
        count = len(tokens.data) if tokens is not None else 0
        if count < self._vocabulary:
            problems.append(
                f"the file's tokenizer has {count} tokens where the training's has {self._vocabulary}: "
                "it was cut"
            )
        merges = reader.get_field("tokenizer.ggml.merges")
        found = len(merges.data) if merges is not None else 0
        is_bpe = _value(reader, "tokenizer.ggml.model") == "gpt2"
        if is_bpe and self._merges is not None and found != self._merges:
            problems.append(
                f"the file's tokenizer has {found} merges where the training's has {self._merges}: it was cut"
            )
        return problems

    def _rope_problems(self, reader: Any) -> list[str]:
        """On short prompts a wrong theta may pass for quantisation; on long ones it is the end of sense."""
        architecture = _value(reader, "general.architecture")
        wanted = _rope_theta(self._config)
        theta = float(_value(reader, f"{architecture}.rope.freq_base") or DEFAULT_ROPE)
        if wanted is None or abs(theta - wanted) <= 1e-5 * wanted:
            return []
        return [f"the file's rope theta is {theta:g}, and the training's {wanted:g}"]

    def _header_problems(self, reader: Any) -> list[str]:
        """Some families write these otherwise, so they only explain."""
        architecture = _value(reader, "general.architecture")
        problems = []
        tokens = reader.get_field("tokenizer.ggml.tokens")
        rows = next((int(each.shape[1]) for each in reader.tensors if each.name == "token_embd.weight"), None)
        if tokens is not None and rows is not None and len(tokens.data) != rows:
            problems.append(f"the file names {len(tokens.data)} tokens, and its embedding has {rows} rows")
        for key, name in (
            ("block_count", "num_hidden_layers"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
        ):
            here, there = _value(reader, f"{architecture}.{key}"), self._config.get(name)
            if isinstance(here, int) and isinstance(there, int) and here != there:
                problems.append(f"the file's {key} is {here}, and the training's {name} {there}")
        return problems


def _merge_problem(merged: list[Matched], furthest: Matched) -> str:
    times = furthest.merged or 0.0
    everywhere = all(abs((each.merged or 0.0) - times) < MERGED_TOLERANCE for each in merged)
    where = "the file" if everywhere else f"{furthest.tensor} of the file"
    if abs(times) < MERGED_TOLERANCE:
        return f"the adapter is not merged into {where}: it holds the untuned base"
    how_often = "twice" if abs(times - 2) < MERGED_TOLERANCE else f"{times:.2f} times"
    return f"the adapter is merged into {where} {how_often}, and not once"


def _beside_problem(furthest: Matched) -> str:
    return (
        f"the base that the adapter is served beside has it in it already: {furthest.tensor} holds it "
        f"{furthest.merged or 0.0:.2f} times, and would get it once more"
    )


def _fit(
    rows: "np.ndarray[Any, Any]", base: "np.ndarray[Any, Any]", added: "np.ndarray[Any, Any] | None"
) -> tuple[float | None, float]:
    """Least squares of a file's rows on the base's and the adapter's; n, if it is certain, and explained."""
    import numpy as np

    known = [base.ravel().astype(np.float64)]
    if added is not None and np.any(added):
        known.append(added.ravel().astype(np.float64))
    columns = np.stack(known, axis=1)
    target = rows.ravel().astype(np.float64)
    found, *_ = np.linalg.lstsq(columns, target, rcond=None)
    rest = target - columns @ found
    total = float(target @ target)
    explained = 1 - float(rest @ rest) / total if total else 0.0
    if len(known) == 1:
        return None, explained
    covariance = np.linalg.pinv(columns.T @ columns) * (rest @ rest) / len(target)
    error = float(covariance[1, 1]) ** 0.5
    return (float(found[1]) if error <= CERTAIN else None), explained


def _rows(tensor: Any, rows: list[int]) -> "np.ndarray[Any, Any]":
    from gguf import dequantize

    values: np.ndarray[Any, Any] = dequantize(tensor.data[rows], tensor.tensor_type)
    return values


def _interleaved(rows: list[int], count: int, heads: int) -> list[int]:
    """Where llama.cpp puts these rows: row j of a head's half h comes to 2j + h."""
    size = count // heads
    if size < 2 or size * heads != count:
        return rows
    half = size // 2
    return [row - row % size + 2 * (row % size % half) + row % size // half for row in rows]


def _rope_theta(config: dict[str, Any]) -> float | None:
    parameters = config.get("rope_parameters") or {}
    found = config.get("rope_theta", parameters.get("rope_theta"))
    return float(found) if isinstance(found, int | float) else None


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()
