"""The step of `bench.warm_steps`: it loads what it is told to, unless that is there, and ends."""

import importlib
import sys
import time
from typing import Any

from worker.step import Step


def run(step: Step) -> dict[str, Any]:
    for name in step.input.params["modules"]:
        if name not in sys.modules:
            getattr(importlib.import_module(name), "warm_up", lambda: None)()
    return {"cpu_seconds": time.process_time()}
