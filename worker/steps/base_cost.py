"""What a quantisation costs the base model before any training: the yardstick for the tuned one.

Each measurement is kept beside the base's quantised file, under the hash of the rows it was made on. A lost
one is made again.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from db.params.values import quantizations_made
from serving.llama_cpp import Tools
from worker.step import Step
from worker.steps.base_files import base_file, cache_folder, weights_hash
from worker.steps.programs import ServedFile, model_server
from worker.steps.teacher_forcing import SLOTS, Difference, ForcedRow, Reference, compare, reference_of
from worker.steps.trained_weights import trained_weights

MEASUREMENT_FORMAT = 3  # raise it when the figures are computed in another way


class BaseCost:
    """Measures the base on given rows, one quantization at a time.

    Args:
        base: folder of the base's weights.
        context: tokens that a slot of the server must hold.
        trained_on: folder of the weights that its files are held against, where these are not its own: the
            same model as GPTQ or AWQ has stored it, on which an adapter was trained.
    """

    def __init__(
        self,
        step: Step,
        tools: Tools,
        base: Path,
        *,
        rows: list[ForcedRow],
        context: int,
        trained_on: Path | None = None,
    ) -> None:
        self._step, self._tools, self._base = step, tools, base
        self._weights = trained_on or base
        self._rows, self._context = rows, context
        self._folder = cache_folder(step, base)
        self._rows_hash = _rows_hash(rows)
        if trained_on is not None:
            self._rows_hash += f"-{weights_hash(trained_on)}"
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
        params = self._step.input.params
        model = base_file(
            self._step, self._tools, self._base, quantization,
            wanted=quantizations_made(params["quantizations"]), why="to know what that alone costs",
        )  # fmt: skip
        if self._reference is None:
            with trained_weights(self._weights) as weights:
                self._reference = reference_of(self._step, weights, self._rows)
        log = self._step.input.folder / f"base-{quantization}.log"
        with model_server(
            self._step, self._tools, ServedFile(model), context=self._context, slots=SLOTS, log=log
        ) as server:
            return compare(self._step, server, self._rows, self._reference)


def _rows_hash(rows: list[ForcedRow]) -> str:
    described = json.dumps([MEASUREMENT_FORMAT, [[row.ids, row.positions] for row in rows]])
    return hashlib.sha256(described.encode()).hexdigest()[:16]
