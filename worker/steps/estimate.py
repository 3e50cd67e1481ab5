"""Estimate a fine-tune: its rows are read and counted by `prepare`'s own code, and nothing is trained.

The base's weights are not fetched for this: its config and tokenizer are, and the headers of its tensors.
"""

from typing import Any

from db.params.fine_tune import FineTuneParams
from training_data.encoded_rows import tokens_of
from worker.step import Step
from worker.steps.base_model import describe_base
from worker.steps.parts import NAMES
from worker.steps.prepare import prepare_rows
from worker.steps.reckoning import looked_at_every
from worker.steps.runtime import prepare_runtime
from worker.steps.stacking import with_its_adapter


def run(step: Step) -> dict[str, Any]:
    """Leave report.json, as `prepare` does; the result is the estimate."""
    prepare_runtime(step.input.settings.threads)
    params = with_its_adapter(step, FineTuneParams.model_validate(step.input.params))
    folder, shape, downloaded = describe_base(step.input.require_base(), step)
    every = looked_at_every(step)
    prepared, estimate = prepare_rows(step, params, folder, shape, downloaded=downloaded, every=every)
    for name in NAMES:
        rows = step.input.folder / f"{name}.jsonl"
        rows.unlink()
        tokens_of(rows).unlink()
    counted = {name: prepared[name] for name in ("rows", "tokens", "data_files")}
    return {**estimate.told, "prepared": counted}
