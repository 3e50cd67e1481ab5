"""A real worker whose first step says one word and ends: `python bench/quick_worker.py`."""

import sys
from typing import Any

from db.errors import InvalidInput
from db.settings import load_settings
from worker.serve import serve
from worker.step import Step
from worker.steps import STEP_MODULES


def run(step: Step) -> dict[str, Any]:
    step.event("Working.")
    raise InvalidInput("That is all.")


if __name__ == "__main__":
    sys.exit(serve(load_settings(), dict.fromkeys(STEP_MODULES, "bench.quick_worker")))
