"""Ports are checked before anything starts, and the error names who holds one."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from db.errors import Conflict


@dataclass(frozen=True)
class Port:
    """A port that a part will listen on, and the setting that moves it."""

    part: str
    setting: str
    number: int
    host: str = "127.0.0.1"


def is_free(port: Port) -> bool:
    family = socket.AF_INET6 if ":" in port.host else socket.AF_INET
    with socket.socket(family) as probe:
        # As servers do: a connection of an earlier run that still lingers is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.number))
        except OSError:
            return False
        return True


def holder(number: int) -> str | None:
    """Who listens on a port, as far as this user may see."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return None
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (number,)
        if listens and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                return f"pid {connection.pid}"
    return None


def problem(port: Port) -> str | None:
    """Why the port cannot be had, or None."""
    if is_free(port):
        return None
    held_by = holder(port.number) or "another program"
    return (
        f"port {port.number}, which {port.part} wants, is held by {held_by}: stop it, "
        f"or choose another port with {port.setting}"
    )


def require_free(ports: Iterable[Port]) -> None:
    """Check every port.

    Raises:
        Conflict: two parts want the same one, or another program holds one; names all of them.
    """
    problems: list[str] = []
    seen: dict[int, Port] = {}
    for port in ports:
        if (other := seen.get(port.number)) is not None:
            problems.append(
                f"{other.part} and {port.part} both want port {port.number}: "
                f"change {other.setting} or {port.setting}"
            )
        elif (found := problem(port)) is not None:
            problems.append(found)
        seen[port.number] = port
    if problems:
        raise Conflict("Nothing was started: " + "; ".join(problems) + ".", code="port_taken")
