"""The params of each kind of job, and which of them name other rows."""

from collections.abc import Mapping
from typing import Any

from db.params.estimate import EstimateParams, EstimateQuantizeParams
from db.params.evaluate import EvaluateParams
from db.params.export import ExportParams
from db.params.fine_tune import FineTuneParams
from db.params.ingest import IngestParams
from db.params.inspect import InspectParams
from db.params.predict import BatchParams, PredictParams
from db.params.pretrain import PretrainParams
from db.params.pull import PullParams
from db.params.push import PushParams
from db.params.quantize import QuantizeParams
from db.params.values import Params

PARAMS: dict[str, type[Params]] = {
    "fine_tune": FineTuneParams,
    "pretrain": PretrainParams,
    "export": ExportParams,
    "ingest": IngestParams,
    "pull": PullParams,
    "push": PushParams,
    "predict": PredictParams,
    "batch": BatchParams,
    "evaluate": EvaluateParams,
    "inspect": InspectParams,
    "estimate": EstimateParams,
    "estimate_quantize": EstimateQuantizeParams,
    "quantize": QuantizeParams,
}

# The params that name rows: what a job needs until it has ended.
FILE_FIELDS = ("training_file", "validation_file", "source.file", "input_file")
FILE_LISTS = ("training_files",)  # of objects with a `file`
MODEL_FIELDS = ("base_model", "merge_base", "start_from", "tokenizer")


def files_of(params: Mapping[str, Any]) -> dict[str, str]:
    """The files that a job's params name, by field."""
    found = {field: _inner(params, field.split(".")) for field in FILE_FIELDS}
    for name in FILE_LISTS:
        found |= {f"{name}[{i}].file": each["file"] for i, each in enumerate(params.get(name) or [])}
    return {field: file_id for field, file_id in found.items() if file_id is not None}


def _inner(value: Any, names: list[str]) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
