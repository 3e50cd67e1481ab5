"""How a stack comes up: check, prepare, start in order. And how the last descendants are ended."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from db.errors import StepFailed, Unavailable
from db.settings import Settings, child_environment
from deploy.local import logs, parts, postgres, state
from deploy.local.gpus import assign_gpus
from deploy.local.parts import ROOT
from deploy.local.ports import require_free
from deploy.local.signals import StopRequested
from serving import embedding_model, llama_cpp
from training_data.ray_clusters import read_clusters, require_ray

if TYPE_CHECKING:
    from deploy.local.supervisor import Supervisor

EXTERNAL_SECONDS = 15.0
LEFTOVER_SECONDS = 10.0
INTERRUPT_SECONDS = 10.0
LINES_OF_AN_ERROR = 25


def bring_up(supervisor: "Supervisor") -> None:
    """Start everything; returns when all of it is ready.

    Raises:
        LatheError: what is in the way, and what to do about it.
        StopRequested: somebody changed their mind.
    """
    settings, secrets = supervisor.settings, supervisor.secrets
    parts.require_guarded(settings)
    settings.require_trackers()
    require_ray(read_clusters(settings.ray_clusters))
    gpus = assign_gpus(settings)
    postgres.check_version(settings.data_dir / "postgres")
    require_free(parts.wanted_ports(settings))
    _wait_for_externals(supervisor)
    tools = _llama_cpp(supervisor)
    model = _embedding_model(supervisor, tools) if settings.embedding_server_url is None else None
    if settings.database_url is None:
        _cluster(supervisor)
    databases = supervisor.begin(parts.databases(settings, secrets))
    servers = supervisor.begin(parts.model_servers(settings, secrets, tools, model, gpus))
    supervisor.wait_for(databases)
    _migrate(supervisor)
    applications = supervisor.begin(parts.applications(settings, secrets, gpus))
    supervisor.wait_for(servers + applications)


def _wait_for_externals(supervisor: "Supervisor") -> None:
    deadline = time.monotonic() + EXTERNAL_SECONDS
    for external in parts.externals(supervisor.settings):
        supervisor.reporter.working(f"asking {external.title} at {external.address}")
        while (problem := external.check()) is not None:
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{external.title} at {external.address}, which {external.setting} names, does not "
                    f"answer: {problem}"
                )
            supervisor.tick(0.5)
        supervisor.reporter.done(external.title, f"{external.address}  (yours)")


def _llama_cpp(supervisor: "Supervisor") -> llama_cpp.Tools:
    tools = llama_cpp.find_tools(supervisor.settings)
    if tools is None or tools.convert is None:
        argv = [sys.executable, str(ROOT / "llama.cpp" / "build.py")]
        _prepare(supervisor, "llama.cpp", "bringing llama.cpp", argv, show=True)
    return llama_cpp.require_tools(supervisor.settings)


def _embedding_model(supervisor: "Supervisor", tools: llama_cpp.Tools) -> Path:
    path = embedding_model.embedding_model_path(supervisor.settings)
    if not path.is_file():
        argv = [sys.executable, "-m", "serving.embedding_model"]
        _prepare(supervisor, "embedding model", "converting the embedding model, once", argv)
    return embedding_model.ensure_embedding_model(tools, supervisor.settings)


def _cluster(supervisor: "Supervisor") -> None:
    folder = supervisor.settings.data_dir / "postgres"
    for half_made in folder.parent.glob(f".{folder.name}-*"):  # of a start that was killed
        shutil.rmtree(half_made, ignore_errors=True)
    password = supervisor.secrets.postgres
    if not (folder / "PG_VERSION").exists():
        supervisor.reporter.working("making the database, once")
    try:
        postgres.initialise(folder, password)
    except StepFailed:
        supervisor.tick(0)  # a Ctrl-C that ended initdb is no failure of it
        raise
    supervisor.tick(0)


def _migrate(supervisor: "Supervisor") -> None:
    changes = parts.environment(supervisor.settings, supervisor.secrets)
    argv = [sys.executable, "-m", "migrations"]
    _prepare(supervisor, "migrations", "bringing the database up to date", argv, changes)


def _prepare(
    supervisor: "Supervisor",
    name: str,
    what: str,
    argv: list[str],
    changes: dict[str, str] | None = None,
    *,
    show: bool = False,
) -> None:
    """Run something to its end, such as the migrations; a request to stop ends it at once.

    Args:
        show: whether its output is for the person who waits.
    Raises:
        StepFailed: it failed; with the end of its output.
    """
    begun = time.monotonic()
    supervisor.reporter.working(what)
    path = logs.folder(supervisor.settings.data_dir) / f"{name.replace(' ', '-')}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    follower = logs.Follower(path)
    last: deque[str] = deque(maxlen=LINES_OF_AN_ERROR)
    with path.open("ab") as log:
        process = subprocess.Popen(
            postgres.child_argv(argv), cwd=ROOT, env=child_environment(changes or {}),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:
            supervisor.signals.wait(0.1)
            if supervisor.signals.stops:
                raise StopRequested
            for line in follower.lines():
                last.append(line)
                if show:
                    supervisor.reporter.line(line)
    finally:
        _end(process)
    for line in follower.lines():
        last.append(line)
        if show:
            supervisor.reporter.line(line)
    if process.returncode:
        where = f"The whole of it is in {path}." if show else f"The end of {path}:"
        raise StepFailed(f"{name} failed. {where}", stderr="" if show else "\n".join(last))
    supervisor.reporter.done(name, f"{time.monotonic() - begun:.1f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process that still runs, with its group; insist after a while."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERRUPT_SECONDS)


def end_leftovers(settings: Settings) -> None:
    """See to it that nothing is left of a stack whose supervisor was killed a moment ago."""
    before = state.read(settings.data_dir)
    if before is None:
        return
    processes = [state.process_of(part.pid, part.created_at) for part in before.parts]
    end_processes([process for process in processes if process is not None], LEFTOVER_SECONDS)


def end_descendants() -> None:
    """End every process below this one."""
    with contextlib.suppress(psutil.Error):
        below = psutil.Process().children(recursive=True)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        end_processes(below, 2)


def end_processes(processes: list[psutil.Process], patience_seconds: float) -> None:
    _, left = psutil.wait_procs(processes, timeout=patience_seconds)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5)
