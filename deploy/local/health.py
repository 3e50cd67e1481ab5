"""Whether a server answers, by asking it. Each check returns None, or in a few words what is wrong."""

import http.client
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import psycopg2

TIMEOUT_SECONDS = 5


def postgres(database_url: str) -> str | None:
    try:
        first_value(database_url, "SELECT 1")
    except psycopg2.Error as error:
        return _first_line(error)
    return None


def worker(database_url: str, *, within_seconds: float, devices: list[str] | None = None) -> str | None:
    """Whether a worker of this machine has said lately that it lives: the one of these devices, or any.

    While the database itself is away nobody can say so, and a worker is not to blame.
    """
    statement = (
        "SELECT count(*) FROM workers WHERE host = %s "
        "AND device_ids = coalesce(CAST(%s AS jsonb), device_ids) "
        "AND seen_at > clock_timestamp() - %s * interval '1 s'"
    )
    named = json.dumps(devices) if devices is not None else None
    try:
        alive = first_value(database_url, statement, (socket.gethostname(), named, within_seconds))
    except psycopg2.OperationalError:
        return None
    except psycopg2.Error as error:
        return _first_line(error)
    return None if alive else f"has not signed in for {within_seconds:.0f} s"


def first_value(
    database_url: str, statement: str, values: tuple[object, ...] | dict[str, object] = ()
) -> Any:
    dsn = database_url.replace("postgresql+psycopg2://", "postgresql://", 1)
    connection = psycopg2.connect(dsn, connect_timeout=TIMEOUT_SECONDS)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            row = cursor.fetchone()
            return row[0] if row else None
    finally:
        connection.close()


def redis(redis_url: str) -> str | None:
    import redis as client_library  # 15 MB of memory, so only where somebody asks

    client = client_library.Redis.from_url(
        redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    )
    try:
        client.ping()
    except (client_library.RedisError, OSError, ValueError) as error:
        return _first_line(error)
    finally:
        client.close()
    return None


def http_get(url: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> str | None:
    """Ask for `url`; anything but a 200 is wrong."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_seconds)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return _first_line(error)
    finally:
        connection.close()
    return None if status == 200 else f"GET {parts.path} answered {status}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
