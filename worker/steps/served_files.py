"""What a server is given of each quantization: a whole model's file, or an adapter's and its base's."""

from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.errors import StepFailed
from db.params.values import quantizations_made
from serving.llama_cpp import Tools
from worker.step import Step
from worker.steps.base_files import base_file
from worker.steps.base_model import fetch_base
from worker.steps.programs import ServedFile

FOR_ADAPTERS = "for its adapters are served beside it"


def publishes_adapter(step: Step) -> bool:
    return bool(step.input.params.get("publish") == "adapter")


def served_file(step: Step, tools: Tools, row: dict[str, Any], folder: Path) -> ServedFile:
    """The files of what the export step returned as `row`, from its `folder`.

    Raises:
        StepFailed: the base's file is not the one that it was exported for.
    """
    file = folder / row["path"]
    if row.get("base") is None:
        return ServedFile(file)
    base = base_of_adapter(step, tools, row["quantization"])
    if file_sha256(base) != row["base"]["sha256"]:
        raise StepFailed(
            f"{base} is not the base's file that this adapter was exported for, but another llama.cpp's, or "
            "damaged: remove it, and submit the job again."
        )
    return ServedFile(base, file)


def base_of_adapter(step: Step, tools: Tools, quantization: str) -> Path:
    """The base's file that the job's adapter is served beside; made if there is none."""
    base = step.input.sixteen_bit_base
    assert base is not None  # noqa: S101 - an adapter has one
    wanted = quantizations_made(step.input.params["quantizations"])
    return base_file(step, tools, fetch_base(base, step), quantization, wanted=wanted, why=FOR_ADAPTERS)
