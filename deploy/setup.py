"""Make .venv and bring llama.cpp: what `make setup` runs, with nothing but the standard library.

    python3 deploy/setup.py [--torch-index-url URL]

The Python packages are installed once, and again only when what decides them changes: pyproject.toml,
the Python, the index of torch builds, or whether there is an NVIDIA GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "lathe-setup"
EXTRAS = ".[worker,local,dev]"
NEEDED_BYTES = 4 * 1000**3
INTERRUPT_SECONDS = 10

PLAN = """\
make setup, once for this checkout:
  1. .venv with Python {python}, torch and the other packages: {packages}
  2. llama.cpp, unless one is found or cached: 77 MB, then a build of about 5 minutes on two cores
     (set LATHE_LLAMA_CPP_DIR to use one that you have)
"""
CPU_PACKAGES = "2.3 GB on disk, about 2 minutes"
GPU_PACKAGES = "6 GB on disk with the CUDA libraries, several minutes"

NO_CPU_BUILD = """\
Your package index has no CPU build of torch, so this takes the default one, whose CUDA libraries
(about 3 GB) will lie unused. To take a CPU build: make setup LATHE_TORCH_INDEX_URL=<an index of them;
PyTorch's installation page names it>
"""


class SetupFailed(Exception):
    """Something a person has to mend; the message says how."""


def run(*command: str | Path, quiet: bool = False) -> None:
    """Run a command in a process group of its own, which an interrupt ends as a whole.

    Args:
        quiet: drop what it prints on stdout, and keep its stderr.

    Raises:
        SetupFailed: the command exited with another code than 0.
    """
    output = subprocess.DEVNULL if quiet else None
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, stdout=output, start_new_session=True
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise
    if code:
        raise SetupFailed(f"exit code {code} from: {' '.join(str(part) for part in command[:4])} …")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to stop as Ctrl-C would, then insist: a compiler must not outlive us.

    pip cleans up on SIGINT only, and SIGINT is ignored by what a shell started in the background.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=INTERRUPT_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def has_nvidia_gpu() -> bool:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def torch_pin() -> str:
    """The exact requirement on torch, as pyproject.toml has it."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    worker: list[str] = project["optional-dependencies"]["worker"]
    return next(requirement for requirement in worker if requirement.startswith("torch=="))


def pip(*arguments: str) -> tuple[str | Path, ...]:
    return (VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments)


def offered(requirement: str) -> bool:
    """Whether the user's own indexes have it; nothing is installed."""
    command = pip("install", "--dry-run", "--no-deps", "--quiet", requirement)
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def install_torch(pin: str, index_url: str, gpu: bool) -> None:
    """Install the build of torch that fits the machine, before anything else can ask for another.

    A bare `torch==2.13.0` takes the highest build that the indexes have, and which one that is depends
    on them: the CPU's without a GPU, CUDA's with one, must be asked for by name.
    """
    if index_url:
        run(*pip("install", "--index-url", index_url, pin))
        return
    version = pin.partition("==")[2]
    wanted = f"{pin},!={version}+cpu" if gpu else f"{pin}+cpu"
    if offered(wanted):
        run(*pip("install", wanted))
        return
    if not gpu:
        print(NO_CPU_BUILD, flush=True)
    run(*pip("install", pin))


def make_venv() -> None:
    works = (
        VENV_PYTHON.exists()
        and not subprocess.run(
            [VENV_PYTHON, "-m", "pip", "--version"], capture_output=True, check=False
        ).returncode
    )
    if works:
        return
    free = shutil.disk_usage(ROOT).free
    if free < NEEDED_BYTES:
        raise SetupFailed(f"{ROOT} has {free / 1e9:.1f} GB free; .venv needs {NEEDED_BYTES / 1e9:.0f} GB.")
    try:
        run(sys.executable, "-m", "venv", "--clear", VENV)
    except SetupFailed as failure:
        raise SetupFailed(f"{failure}\nOn Debian and Ubuntu: apt install python3-venv") from None


def fingerprint(index_url: str, gpu: bool) -> str:
    """What decides which packages belong into .venv, and where our own are found.

    An editable installation maps the top-level folders that were there when it was made, so a new one
    asks for another.
    """
    ours = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    parts = [(ROOT / "pyproject.toml").read_text(), str(ROOT), *ours, index_url, str(gpu)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def install_packages(index_url: str, gpu: bool) -> None:
    wanted = fingerprint(index_url, gpu)
    if STAMP.exists() and STAMP.read_text() == wanted and VENV_PYTHON.exists():
        return
    python = "{}.{}".format(*sys.version_info[:2])
    print(PLAN.format(python=python, packages=GPU_PACKAGES if gpu else CPU_PACKAGES), flush=True)
    started = time.monotonic()
    make_venv()
    install_torch(torch_pin(), index_url, gpu)
    run(*pip("install", "-e", EXTRAS))
    STAMP.write_text(wanted)
    print(f"Python packages installed in {time.monotonic() - started:.0f} s.", flush=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Take any request to stop the way Ctrl-C goes."""
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description="Make .venv and bring llama.cpp.")
    parser.add_argument(
        "--torch-index-url", default="", help="an index of torch builds, in place of pip's own"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        install_packages(arguments.torch_index_url, has_nvidia_gpu())
        run(VENV_PYTHON, ROOT / "llama.cpp" / "build.py", quiet=True)
    except SetupFailed as failure:
        print(f"make setup: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make setup: interrupted; run it again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
