"""What the benchmarks run on: a durable Postgres, a Valkey and servers of Lathe's, all ended with them."""

import contextlib
import secrets
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import create_engine, text

import migrations
from deploy.local import postgres, valkey
from deploy.local.parts import ROOT, Part
from deploy.local.process import Supervised
from serving.local_port import free_port

STOP_SECONDS = 40.0


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Stack:
    """The servers of one benchmark, in `folder`; `ending` ends them, the latest first."""

    def __init__(self, folder: Path, ending: contextlib.ExitStack) -> None:
        self.folder, self._ending = folder, ending
        self._password = secrets.token_hex(8)
        self._postgres_port, valkey_port = free_port(), free_port()
        cluster = folder / "postgres" / "cluster"
        postgres.initialise(cluster, self._password)
        argv = postgres.server_argv(cluster, self._postgres_port)
        self.postgres = self.start("postgres", argv, {}, stop=signal.SIGINT)
        postgres.wait_until_ready(self._postgres_port, self._password)
        self.redis_url = valkey.redis_url(valkey_port, self._password)
        configuration = valkey.write_configuration(folder / "valkey", valkey_port, self._password)
        self.valkey = self.start("valkey", valkey.server_argv(configuration), {})

    def start(
        self, name: str, argv: list[str], more: dict[str, str], *, stop: signal.Signals = signal.SIGTERM
    ) -> Supervised:
        """Start a server that ends with the stack, or with this process however that ends."""
        environment = {"PYTHONPATH": str(ROOT), **more}
        part = Part(name, name, argv, environment, stop_signal=stop, stop_seconds=STOP_SECONDS)
        server = Supervised(part, self.folder)
        server.start()
        self._ending.callback(end, server)
        return server

    def python(self, name: str, module: str, more: dict[str, str], *arguments: str) -> Supervised:
        """Start one of our own programs."""
        argv = [sys.executable, "-m", module, *arguments]
        return self.start(name, postgres.child_argv(argv, death_signal="SIGKILL"), more)

    def database(self, name: str) -> str:
        self._execute(f"CREATE DATABASE {name}")
        return postgres.database_url(self._postgres_port, self._password, name)

    def drop_database(self, name: str) -> None:
        self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        server = create_engine(
            postgres.database_url(self._postgres_port, self._password, "postgres"),
            isolation_level="AUTOCOMMIT",
        )
        with server.connect() as connection:
            connection.execute(text(statement))
        server.dispose()

    def settings(self, name: str, database_url: str, port: int) -> dict[str, str]:
        return {
            "DATABASE_URL": database_url,
            "REDIS_URL": f"{self.redis_url.rpartition('/')[0]}/{len(name)}",
            "LATHE_DATA_DIR": str(self.folder / name),
            "LATHE_API_PORT": str(port),
        }

    def lathe(
        self,
        name: str,
        *,
        prepare: str = "",
        more: Mapping[str, str] = MappingProxyType({}),
        module: str = "api",
    ) -> tuple[int, Supervised, dict[str, str]]:
        """Start an API over a database of its own, in which the SQL `prepare` is done first.

        Args:
            more: settings of it and of its workers.
            module: what runs the API.

        Returns:
            its port, the server, and the environment that a worker of it needs.
        """
        url, port = self.database(f"bench_{name}"), free_port()
        migrations.upgrade(url)
        if prepare:
            engine = create_engine(url)
            with engine.begin() as connection:
                connection.execute(text(prepare))
            with engine.begin() as connection:
                connection.execute(text("ANALYZE"))
            engine.dispose()
        environment = {**self.settings(name, url, port), **more}
        server = self.python(f"api-{name}", module, environment)
        wait_for(port)
        return port, server, environment


def end(server: Supervised) -> None:
    """Ask a server to stop, and kill it if it does not; with it goes what is left of its process group."""
    server.ask_to_stop()
    deadline = time.monotonic() + server.part.stop_seconds
    while server.alive and not server.has_ended():
        if time.monotonic() > deadline:
            server.kill()
        time.sleep(0.05)
    if server.alive:
        server.collect()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 40
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
