"""Compile the encoder for this machine's CPU, once, into the cache."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from serving.llama_cpp import cpu_key

HERE = Path(__file__).resolve().parent
SOURCES = ("blocks.cpp", "search.hpp", "lanes.hpp")
COMPILERS = ("c++", "g++", "clang++")
# No fused multiply-adds: they round once where ggml rounds twice. The other two change no value; they let
# loops become vectors although floating-point exceptions and errno could then tell otherwise.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno",
    "-fvisibility=hidden", "-shared", "-fPIC",
)  # fmt: skip
TIMEOUT_SECONDS = 300
LINES_OF_AN_ERROR = 5


class CannotCompile(Exception):
    """There is no library; the message says why, for the user."""


def compiled(cache: Path) -> Path:
    """Return the library, compiled now where the cache does not have it for this source and this CPU.

    Raises:
        CannotCompile: there is no C++ compiler, or it refuses.
    """
    library = cache / "encoder" / f"{_version()}-{cpu_key()}" / "encoder.so"
    if not library.is_file():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".work-", dir=library.parent) as work:
            _compile(Path(work) / library.name)
            (Path(work) / library.name).replace(library)  # complete from the moment it has its name
    return library


def _version() -> str:
    parts = [(HERE / name).read_bytes() for name in SOURCES]
    return hashlib.sha256(b"\0".join([*parts, " ".join(FLAGS).encode()])).hexdigest()[:10]


def _compile(target: Path) -> None:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise CannotCompile(f"there is no C++ compiler ({', '.join(COMPILERS)})")
    argv = [compiler, *FLAGS, str(HERE / "blocks.cpp"), "-o", str(target)]
    try:
        answer = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCompile(f"{compiler} could not be run: {error}") from error
    if answer.returncode:
        end = "\n".join(answer.stderr.strip().splitlines()[-LINES_OF_AN_ERROR:])
        raise CannotCompile(f"{compiler} failed: {end}")
