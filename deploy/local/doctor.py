"""Whether this machine can run Lathe: each check says ok, warn or fail, and how to mend it."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from db.errors import LatheError
from db.settings import Settings
from deploy.local import parts, ports, postgres, state, valkey
from deploy.local.child import unprivileged_user
from deploy.local.gpus import assign_gpus
from serving import llama_cpp

GIB = 1024**3
COMPILER_FIX = (
    "Debian and Ubuntu: apt install build-essential; Fedora: dnf install gcc-c++; "
    "or name an existing llama.cpp with LATHE_LLAMA_CPP_DIR"
)
STANDARD_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Finding:
    check: str
    status: Literal["ok", "warn", "fail"]
    message: str
    fix: str | None = None


def examine(settings: Settings) -> list[Finding]:
    """Run every check; one that breaks is a finding itself."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check(settings))
        except (OSError, LatheError) as error:
            name = check.__name__.strip("_").replace("_", " ")
            findings.append(Finding(name, "fail", getattr(error, "message", str(error))))
    return findings


def _python(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield Finding("python", "ok", f"{version} at {sys.executable}")
    else:
        yield Finding("python", "fail", version, "make .venv with Python 3.11, 3.12 or 3.13")


def _packages(settings: Settings) -> Iterator[Finding]:
    wanted = {"torch": "worker", "transformers": "worker", "trl": "worker", "peft": "worker"}
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        yield Finding("packages", "fail", f"missing: {', '.join(missing)}", "run `make setup`")
    else:
        yield Finding("packages", "ok", "what training needs is installed")
    for what, find, named in (
        ("postgres", postgres.binaries, settings.database_url),
        ("valkey", valkey.binary, settings.redis_url),
    ):
        if named is None:
            yield Finding(what, "ok", str(find()))


def _user(settings: Settings) -> Iterator[Finding]:
    if os.geteuid() != 0:
        yield Finding("user", "ok", f"uid {os.geteuid()}")
        return
    try:
        user = unprivileged_user()
    except SystemExit as error:
        fix = "add a user `postgres`, or run Lathe as an ordinary user"
        yield Finding("user", "fail", str(error), fix)
        return
    yield Finding("user", "ok", f"root; Postgres runs as {user.pw_name}")


def _llama_cpp(settings: Settings) -> Iterator[Finding]:
    tools = llama_cpp.find_tools(settings)
    if tools is not None:
        yield Finding("llama.cpp", "ok", f"{tools.version} at {tools.bin} (found by {tools.source})")
    else:
        folder = llama_cpp.cached_folder(settings)
        yield Finding("llama.cpp", "ok", f"will be built once into {folder}: 77 MB, some minutes")
    # Only a build needs them.
    level: Literal["fail", "warn"] = "fail" if tools is None else "warn"
    compiler = next((found for name in STANDARD_COMPILERS if (found := shutil.which(name))), None)
    needs = "" if tools is None else " (needed only to build llama.cpp, which is here)"
    if compiler:
        yield Finding("compiler", "ok", compiler)
    else:
        yield Finding("compiler", level, f"no C++ compiler{needs}", COMPILER_FIX)
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or shutil.which("cmake")
    if cmake:
        yield Finding("cmake", "ok", cmake)
    else:
        yield Finding("cmake", level, f"no cmake{needs}", "run `make setup`, which installs it")


def _gpu(settings: Settings) -> Iterator[Finding]:
    names = llama_cpp.gpu_names()
    backend = llama_cpp.resolve_backend(settings)
    if not names:
        assign_gpus(settings)  # refuses to look for some
        if Path("/proc/driver/nvidia/version").exists():
            yield Finding(
                "gpu", "warn", "an NVIDIA driver, but nvidia-smi shows no GPU", "check `nvidia-smi`"
            )
        else:
            yield Finding("gpu", "ok", "none: training and serving run on the CPU")
        return
    yield Finding("gpu", "ok", f"{', '.join(names)}; driver {_driver_version()}")
    gpus = assign_gpus(settings)
    if gpus is None:
        yield Finding("gpu workers", "ok", "one for all of them: `lathe up --gpus all` starts one for each")
    else:
        each = [" + ".join(map(str, devices)) for devices in gpus.workers]
        yield Finding("gpu workers", "ok", f"one each for {', '.join(each)}")
    if _torch_cuda() is None:
        fix = "make setup LATHE_TORCH_INDEX_URL=<an index of CUDA builds>, after make clean"
        yield Finding("gpu and torch", "warn", "this torch is built for the CPU only", fix)
    if backend == "cpu":
        fix = "install the CUDA toolkit (nvcc), or name a llama.cpp with LATHE_LLAMA_CPP_DIR"
        yield Finding("gpu and llama.cpp", "warn", "llama.cpp serves from the CPU", fix)


def _driver_version() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return found.group(1) if found else "unknown"


def _torch_cuda() -> str | None:
    """The CUDA version torch was built with, read from its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda.*?=\s*'([^']+)'", text, re.MULTILINE)
    return found.group(1) if found else None


def _memory(settings: Settings) -> Iterator[Finding]:
    available = psutil.virtual_memory().available
    text = f"{available / GIB:.1f} GB available"
    if available < 2 * GIB:
        yield Finding("memory", "fail", text, "free some: the demo's training takes about 2 GB")
    elif available < 4 * GIB:
        yield Finding("memory", "warn", text, "enough for `tiny`; larger models need more")
    else:
        yield Finding("memory", "ok", text)


def _shared_memory(settings: Settings) -> Iterator[Finding]:
    folder = Path("/dev/shm")  # noqa: S108 - measured, not written to
    if not folder.is_dir():
        fix = "mount a tmpfs there; in a container: --shm-size=1g"
        yield Finding("shared memory", "fail", f"{folder} is not there", fix)
        return
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GB free in /dev/shm"
    if free < 64 * 1024**2:
        yield Finding("shared memory", "fail", text, "in a container: --shm-size=1g")
    elif free < GIB:
        fix = "training on several GPUs wants 1 GB; in a container: --shm-size=1g"
        yield Finding("shared memory", "warn", text, fix)
    else:
        yield Finding("shared memory", "ok", text)


def _folders(settings: Settings) -> Iterator[Finding]:
    for name, folder, needed, setting in (
        ("data folder", settings.data_dir, 2 * GIB, "LATHE_DATA_DIR"),
        ("cache folder", settings.cache_dir, GIB, "LATHE_CACHE_DIR"),
    ):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            yield Finding(name, "fail", f"{there} cannot be written to", f"name another with {setting}")
            continue
        free = shutil.disk_usage(there).free
        text = f"{folder}, {free / GIB:.1f} GB free"
        if free < needed:
            fix = f"free {needed / GIB:.0f} GB, or name another with {setting}"
            yield Finding(name, "fail", text, fix)
        elif free < 5 * needed:
            yield Finding(name, "warn", text, "models of billions of parameters need tens of GB")
        else:
            yield Finding(name, "ok", text)
    if settings.database_url is None:
        postgres.check_version(settings.data_dir / "postgres")


def _ports(settings: Settings) -> Iterator[Finding]:
    current = state.running(settings.data_dir)
    ours = {part.port for part in current.parts} if current else set()
    for port in parts.wanted_ports(settings):
        name = f"port {port.number}"
        if port.number in ours:
            yield Finding(name, "ok", f"{port.part}, running")
        elif (problem := ports.problem(port)) is not None:
            yield Finding(name, "fail", problem, f"set {port.setting}")
        else:
            yield Finding(name, "ok", f"free, for {port.part}")
    parts.require_guarded(settings)


def _servers_named(settings: Settings) -> Iterator[Finding]:
    for external in parts.externals(settings):
        problem = external.check()
        where = f"{external.title} at {external.address}"
        if problem is None:
            yield Finding(external.setting, "ok", f"{where} answers")
        else:
            fix = f"start it, or unset {external.setting}"
            yield Finding(external.setting, "fail", f"{where}: {problem}", fix)


CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _user,
    _llama_cpp,
    _gpu,
    _memory,
    _shared_memory,
    _folders,
    _ports,
    _servers_named,
)
