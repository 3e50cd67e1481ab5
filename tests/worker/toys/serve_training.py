"""A real worker that prepares, trains and pushes for real; all other steps are `toy_step`."""

import sys

from db.settings import load_settings
from worker.serve import serve
from worker.steps import STEP_MODULES, WARM

REAL = ("prepare", "train", "push")

if __name__ == "__main__":
    modules = {
        (kind, step): module if step in REAL else "toy_step" for (kind, step), module in STEP_MODULES.items()
    }
    sys.exit(serve(load_settings(), modules, WARM))
