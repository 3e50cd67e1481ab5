"""What a quantisation costs the base model before any training: the yardstick for the tuned one.

The base's quantised files are kept in `<cache>/base-gguf/<hash of the weights>/`, with each
measurement beside them under the hash of the rows it was made on. A lost entry is made again.
"""

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from db.params.values import quantizations_made
from serving.llama_cpp import Tools
from worker.step import Step
from worker.steps.base_model import weight_files
from worker.steps.gguf_export import Wanted, make_files
from worker.steps.gguf_files import describe, place
from worker.steps.merging import Weights
from worker.steps.programs import model_server
from worker.steps.teacher_forcing import SLOTS, Difference, ForcedRow, Reference, compare, reference_of
from worker.steps.trained_weights import trained_weights
from worker.steps.weights_cache import file_sha256

MEASUREMENT_FORMAT = 3  # raise it when the figures are computed in another way


class BaseCost:
    """Measures the base on given rows, one quantization at a time.

    Args:
        base: folder of the base's weights.
        context: tokens that a slot of the server must hold.
    """

    def __init__(self, step: Step, tools: Tools, base: Path, *, rows: list[ForcedRow], context: int) -> None:
        self._step, self._tools, self._base = step, tools, base
        self._rows, self._context = rows, context
        self._folder = cache_folder(step, base)
        self._rows_hash = _rows_hash(rows)
        self._reference: Reference | None = None

    def of(self, quantization: str) -> Difference:
        """Measure, or read what was measured on the same rows before."""
        path = self._folder / f"{quantization}-{self._rows_hash}.json"
        try:
            return Difference(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            difference = self._measure(quantization)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{self._step.input.job_id}")
        beside.write_text(json.dumps(asdict(difference)))
        beside.replace(path)
        return difference

    def _measure(self, quantization: str) -> Difference:
        model = self._quantised(quantization)
        if self._reference is None:
            with trained_weights(self._base) as weights:
                self._reference = reference_of(self._step, weights, self._rows)
        log = self._step.input.folder / f"base-{quantization}.log"
        with model_server(
            self._step, self._tools, model, context=self._context, slots=SLOTS, log=log
        ) as server:
            return compare(self._step, server, self._rows, self._reference)

    def _quantised(self, quantization: str) -> Path:
        """The base's file; all the quantizations of this job are made at once, from one conversion."""
        target = self._folder / f"{quantization}.gguf"
        if target.is_file():
            return target
        missing = [
            name
            for name in quantizations_made(self._step.input.params["quantizations"])
            if not (self._folder / f"{name}.gguf").is_file()
        ]
        self._step.event(
            f"Quantising the base model to {', '.join(missing)} as well, to know what that alone costs; "
            "this is done once for each base.",
            quantizations=missing,
        )
        # In the attempt's folder: what is left of a killed one is cleared away with it.
        with tempfile.TemporaryDirectory(prefix="base-", dir=self._step.input.folder) as work:
            described = Path(work) / "model"
            describe(self._base, self._base, described)
            files = {name: Path(work) / f"{name}.gguf" for name in missing}
            make_files(
                self._step, self._tools, Wanted(Weights(self._base), described, files, self._base.name)
            )
            for path in files.values():
                place(path, self._folder / path.name)
        return target


def cache_folder(step: Step, base: Path) -> Path:
    return step.input.settings.cache_dir / "base-gguf" / weights_hash(base)


def keep_as_base(step: Step, model: Path, files: dict[str, Path]) -> None:
    """Keep the files of a model made from scratch, which fine-tunes will start from."""
    folder = cache_folder(step, model)
    for quantization, path in files.items():
        place(path, folder / f"{quantization}.gguf")


def weights_hash(folder: Path) -> str:
    """Name a model by the contents of its config, tokenizer and weights."""
    names = [*weight_files(folder), folder / "config.json", folder / "tokenizer.json"]
    lines = [f"{path.name} {file_sha256(path)}" for path in sorted(names) if path.is_file()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:24]


def _rows_hash(rows: list[ForcedRow]) -> str:
    described = json.dumps([MEASUREMENT_FORMAT, [[row.ids, row.positions] for row in rows]])
    return hashlib.sha256(described.encode()).hexdigest()[:16]
