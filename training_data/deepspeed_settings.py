"""The operator's configurations of DeepSpeed, LATHE_DEEPSPEED: names, and the JSON file of each.

A job gives one of the names. What Lathe settles itself (batches, clipping, precision) is DeepSpeed's `auto`,
whatever the file says; its optimizer and scheduler stay those of the job.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from db.errors import InvalidInput

SETTING = "LATHE_DEEPSPEED"
SETTLED = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
}
NOT_THEIRS = ("optimizer", "scheduler", "fp16", "tensorboard", "wandb", "csv_monitor", "comet")


def find_configuration(named: Mapping[str, Path], name: str) -> dict[str, Any]:
    """A configuration by its name.

    Raises:
        InvalidInput: there is none by that name, or its file is wrong.
    """
    if name not in named:
        there = (
            f"There are: {', '.join(sorted(named))}" if named else f"The operator has named none ({SETTING})"
        )
        raise InvalidInput(f"There is no DeepSpeed configuration {name!r}. {there}.", param="deepspeed")
    return _read(name, named[name])


def read_configurations(named: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """All of them, as a process starts.

    Raises:
        InvalidInput: a file is wrong.
    """
    return {name: _read(name, path) for name, path in named.items()}


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        configuration = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _wrong(name, path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _wrong(name, path, f"is no JSON: {error}") from error
    if not isinstance(configuration, dict):
        raise _wrong(name, path, "must hold an object")
    zero = configuration.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise _wrong(name, path, "is wrong: zero_optimization must be an object")
    if zero.get("stage") == 3:
        raise _wrong(
            name, path, "has stage 3, whose shares of weights are not saved here: stages 1 and 2 are"
        )
    theirs = [key for key in NOT_THEIRS if key in configuration]
    if theirs:
        raise _wrong(name, path, f"sets {theirs[0]}, which each job settles: take it out")
    return {**configuration, **SETTLED}


def _wrong(name: str, path: Path, what: str) -> InvalidInput:
    return InvalidInput(f"{SETTING}: the file of {name}, {path}, {what}.", param=SETTING)
