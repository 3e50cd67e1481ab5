"""Bring the database named by DATABASE_URL up to date: `python -m migrations [REVISION]`."""

import sys

from db.errors import LatheError
from db.settings import load_settings
from migrations import upgrade


def main() -> None:
    try:
        upgrade(load_settings().require_database_url(), *sys.argv[1:2])
    except LatheError as error:
        sys.exit(f"migrations: {error.message}")


if __name__ == "__main__":
    main()
