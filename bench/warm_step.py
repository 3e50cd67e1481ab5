"""The step of `bench.warm_steps`: it imports what it is told to, and ends."""

import importlib
import time
from typing import Any

from worker.step import Step


def run(step: Step) -> dict[str, Any]:
    for module in step.input.params["modules"]:
        importlib.import_module(module)
    return {"cpu_seconds": time.process_time()}
