"""A real worker whose steps are all `toy_step`: `python serve_toys.py`, this folder on PYTHONPATH."""

import sys

from db.settings import load_settings
from worker.serve import serve
from worker.steps import STEP_MODULES, Warm

if __name__ == "__main__":
    toys = dict.fromkeys(STEP_MODULES, "toy_step")
    sys.exit(serve(load_settings(), toys, [Warm(steps=("toy_step",), libraries=())]))
