"""Run a worker: `python -m worker`. Settings come from the environment (see `db/settings.py`)."""

import sys

from db.errors import LatheError
from db.settings import load_settings
from worker.serve import serve
from worker.steps import STEP_MODULES, WARM


def main() -> None:
    try:
        sys.exit(serve(load_settings(), STEP_MODULES, WARM))
    except LatheError as error:
        sys.exit(f"worker: {error.message}")


if __name__ == "__main__":
    main()
