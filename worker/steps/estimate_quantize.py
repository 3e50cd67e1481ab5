"""Estimate a job of the kind `quantize`: its rows are read as it reads them, and nothing is done.

The base's weights are not fetched for this: its config and tokenizer are, and the headers of its tensors.
"""

from typing import Any

from db.params.quantize import QuantizeParams
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.base_model import check_config, context_length, copy_tokenizer, describe_base
from worker.steps.calibration import read_calibration
from worker.steps.quantize import check_groups
from worker.steps.quantizing_estimate import reckon_quantization
from worker.steps.runtime import prepare_runtime


def run(step: Step) -> dict[str, Any]:
    """The result is the estimate."""
    prepare_runtime(step.input.settings.threads)
    params, base = QuantizeParams.model_validate(step.input.params), step.input.require_base()
    folder, shape, downloaded = describe_base(base, step)
    check_config(folder, base.name, "base_model")
    check_groups(shape, params.group_size)
    copy_tokenizer(folder, step.input.folder / "tokenizer")
    tokenizer = ChatTokenizer(step.input.folder / "tokenizer")
    rows = read_calibration(step, tokenizer, context_length(folder))
    return reckon_quantization(step, params, shape, rows, downloaded=downloaded).told
