"""A local stack as others use it: start one in the background, stop it, ask how it is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import psutil

from db.errors import Unavailable
from db.settings import Settings, child_environment
from deploy.local import health, logs, parts, postgres, state, valkey
from deploy.local.parts import Check, Secrets
from deploy.local.report import Reporter, replay
from deploy.local.startup import end_leftovers
from deploy.local.state import PartState, StackState

STOP_SECONDS = 40.0
HEALTH_PATHS = {"api": "/healthz", "flower": "/healthcheck", "chat": "/health", "embeddings": "/health"}


def foreground_argv() -> list[str]:
    # -P: a folder `deploy` in the user's working directory is not ours.
    return [sys.executable, "-P", "-m", "deploy.local.supervisor"]


def start(
    settings: Settings,
    reporter: Reporter,
    *,
    changes: Mapping[str, str] | None = None,
    dies_with_us: bool = False,
) -> int:
    """Start a stack in the background and wait until it is ready; returns an exit code.

    Args:
        changes: to the environment that it reads its settings from.
        dies_with_us: stop it when this process ends, however that happens.
    Raises:
        KeyboardInterrupt: the wait was interrupted; the stack has been stopped again.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_folder = logs.folder(settings.data_dir)
    log_folder.mkdir(mode=0o700, exist_ok=True)
    read_end, write_end = os.pipe()
    argv = [*foreground_argv(), "--report-fd", str(write_end)]
    if dies_with_us:
        argv = postgres.child_argv(argv, death_signal="SIGTERM")
    with (log_folder / "supervisor.log").open("ab") as log, os.fdopen(read_end) as pipe:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write_end],
            env=child_environment(changes or {}), start_new_session=True,
        )  # fmt: skip
        os.close(write_end)
        try:
            if replay(pipe, reporter):
                return 0
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            replay(pipe, reporter)
            process.wait(STOP_SECONDS)
            raise
        return process.wait(STOP_SECONDS) or 1


def stop(settings: Settings) -> bool:
    """Stop the stack of the data folder, by force if it takes too long; returns whether one ran.

    Raises:
        Unavailable: one runs, but not as this user may see or stop it.
    """
    if not state.is_held(settings.data_dir):
        return False
    process = _supervisor(settings)
    try:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()  # its children go with it
            process.wait(5)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        raise Unavailable(
            f"Lathe (pid {process.pid}) belongs to another user: stop it as that user."
        ) from None
    end_leftovers(settings)
    return True


def _supervisor(settings: Settings) -> psutil.Process:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # a stack that has only just begun has not written its state yet
        current = state.read(settings.data_dir)
        process = state.process_of(current.pid, current.created_at) if current else None
        if process is not None:
            return process
        time.sleep(0.1)
    raise Unavailable(f"A stack holds {settings.data_dir}, but its process cannot be found.")


# --- how it is --------------------------------------------------------------------------------------


def describe(settings: Settings) -> dict[str, Any] | None:
    """Every part with its process, its health by a real check, and its memory; None without a stack."""
    current = state.running(settings.data_dir)
    if current is None:
        return None
    settings = _as_it_runs(settings, current)
    secrets = Secrets(settings)
    described = [_describe_part(part, _check(part, settings, secrets)) for part in current.parts]
    ready = current.ready and all(part["health"] == "ok" for part in described)
    return {
        "running": True,
        "ready": ready,
        "data_dir": current.data_dir,
        "pid": current.pid,
        "uptime_seconds": round(time.time() - current.created_at, 1),
        "api_url": current.api_url,
        "flower_url": current.flower_url,
        "flower_user": current.flower_user,
        "flower_password": secrets.flower,
        "parts": [_describe_supervisor(current), *described],
    }


def _as_it_runs(settings: Settings, current: StackState) -> Settings:
    """The settings with the ports of the running stack, which today's environment may not name."""
    changes: dict[str, Any] = {}
    for part in current.parts:
        if part.name in ("postgres", "valkey") and part.port is not None:
            changes[f"{part.name}_port"] = part.port
            changes["database_url" if part.name == "postgres" else "redis_url"] = None
    return settings.model_copy(update=changes)


def _describe_supervisor(current: StackState) -> dict[str, Any]:
    part = PartState("supervisor", "supervisor", "ready", pid=current.pid, created_at=current.created_at)
    return _describe_part(part, None, with_children=False)


def _describe_part(part: PartState, check: Check | None, *, with_children: bool = True) -> dict[str, Any]:
    process = state.process_of(part.pid, part.created_at)
    return {
        "name": part.name,
        "state": part.state,
        "health": _health(part, process, check),
        "pid": part.pid,
        "port": part.port,
        "address": part.address or None,
        "uptime_seconds": round(time.time() - part.created_at, 1) if process and part.created_at else None,
        "restarts": part.restarts,
        "note": part.note,
        **_memory(process, with_children),
    }


def _health(part: PartState, process: psutil.Process | None, check: Check | None) -> str:
    if part.state != "external" and process is None:
        return part.note or "not running"
    return (check() if check is not None else None) or "ok"


def _check(part: PartState, settings: Settings, secrets: Secrets) -> Check | None:
    if part.state == "external":
        return next((e.check for e in parts.externals(settings) if e.name == part.name), None)
    if part.name == "postgres":
        return partial(health.postgres, parts.database_url(settings, secrets))
    if part.name == "valkey":
        return partial(valkey.ping, settings.valkey_port, secrets.valkey)
    if part.name.startswith("worker"):
        return parts.worker_check(settings, parts.database_url(settings, secrets), part.address)
    is_backend = part.name.startswith(parts.BACKEND_PART)
    path = "/health" if is_backend else HEALTH_PATHS.get(part.name)
    return partial(health.http_get, part.address + path) if path is not None else None


def _memory(process: psutil.Process | None, with_children: bool) -> dict[str, int | None]:
    """Memory of a process and those below it. PSS counts shared pages once; not every user may see it."""
    if process is None:
        return {"processes": 0, "rss_bytes": None, "pss_bytes": None}
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True) if with_children else []
    rss, pss, count = 0, 0, 0
    pss_known = True
    for member in family:
        try:
            rss += member.memory_info().rss
            count += 1
            pss += member.memory_full_info().pss
        except psutil.AccessDenied:
            pss_known = False
        except psutil.Error:
            continue
    return {"processes": count, "rss_bytes": rss, "pss_bytes": pss if pss_known else None}
