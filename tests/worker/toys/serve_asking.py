"""A real worker with the real steps of jobs that ask a model for each row."""

import sys

from db.settings import load_settings
from worker.serve import serve
from worker.steps import STEP_MODULES, WARM

if __name__ == "__main__":
    sys.exit(serve(load_settings(), STEP_MODULES, WARM))
