import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from db.settings import Settings
from serving import llama_cpp

FOLDER = Path(__file__).resolve().parents[2] / "llama.cpp"


def load(name: str) -> ModuleType:
    """The folder's name is no Python package's, so its modules are loaded by path."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


compiling = load("compiling")
build = load("build")


@dataclass(frozen=True)
class BuildSettings:
    cache_dir: Path
    llama_cpp_dir: Path | None = None
    llama_backend: str = "cpu"


def fake_source(folder: Path) -> Path:
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "LICENSE"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("#")
    for package in ("conversion", "gguf-py/gguf"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text("")
    return folder


def fake_programs(folder: Path, *, works: bool = True) -> Path:
    folder.mkdir(parents=True)
    for name in compiling.PIN["tools"]:
        (folder / name).write_text("#!/bin/sh\n" + ("exit 0\n" if works else "kill -ILL $$\n"))
        (folder / name).chmod(0o755)
    (folder / "libllama.so.0").write_text("library")
    (folder / "libllama.so").symlink_to("libllama.so.0")
    (folder / "llama-cli").write_text("not one of ours")
    return folder


class TestInstall:
    def test_lays_out_programs_libraries_and_converters(self, tmp_path: Path) -> None:
        target = tmp_path / "0.0-cpu-x"
        build.install(
            fake_programs(tmp_path / "b"), fake_source(tmp_path / "s"), target, tmp_path / "w", "cpu"
        )
        assert {path.name for path in (target / "bin").iterdir()} == {
            *compiling.PIN["tools"],
            "libllama.so",
            "libllama.so.0",
        }
        assert (target / "bin" / "libllama.so").is_symlink()
        assert (target / "convert" / "conversion" / "__init__.py").is_file()
        assert (target / "python" / "gguf" / "__init__.py").is_file()
        assert list((target / "convert" / "conversion" / "__pycache__").glob("__init__.*.pyc"))
        assert not (tmp_path / "w").exists()

    def test_programs_that_do_not_start_are_not_installed(self, tmp_path: Path) -> None:
        programs = fake_programs(tmp_path / "b", works=False)
        with pytest.raises(compiling.BuildFailed, match="does not start"):
            build.install(programs, fake_source(tmp_path / "s"), tmp_path / "t", tmp_path / "w", "cpu")
        assert not (tmp_path / "t").exists()


class TestWorkplace:
    def test_clears_what_a_killed_builder_left(self, tmp_path: Path) -> None:
        (tmp_path / ".work-dead").mkdir()
        with build._workplace(tmp_path) as work:
            assert [path.name for path in tmp_path.glob(".work-*")] == [work.name]
        assert list(tmp_path.glob(".work-*")) == []

    def test_one_builder_at_a_time(self, tmp_path: Path) -> None:
        with (
            build._workplace(tmp_path),
            (tmp_path / ".lock").open("w") as lock,
            pytest.raises(BlockingIOError),
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


class TestCommand:
    def test_names_an_existing_llama_cpp_and_builds_nothing(self, tmp_path: Path) -> None:
        tools = llama_cpp.require_tools(Settings())
        answer = run_build(tmp_path, "--json", LATHE_LLAMA_CPP_DIR=str(tools.bin.parent))
        assert answer.returncode == 0
        assert f'"bin": "{tools.bin}"' in answer.stdout

    def test_says_what_to_install_without_a_compiler(self, tmp_path: Path) -> None:
        answer = run_build(tmp_path, PATH="/nowhere", CC="", CXX="")
        assert answer.returncode == 1
        assert "build-essential" in answer.stderr
        assert "LATHE_LLAMA_CPP_DIR" in answer.stderr
        assert list((tmp_path / "cache" / "llama.cpp").iterdir()) == [tmp_path / "cache/llama.cpp/.lock"]

    def test_stopped_in_the_middle_leaves_nothing(self, tmp_path: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, FOLDER / "build.py"],
            env=environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        )
        folder = tmp_path / "cache" / "llama.cpp"
        deadline = time.monotonic() + 30
        while not list(folder.glob(".work-*/*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130, stderr
        assert "nothing half-built" in stderr
        assert [path.name for path in folder.iterdir()] == [".lock"]


class TestProgress:
    @pytest.mark.parametrize(
        ("line", "percent"),
        [("[ 42%] Building CXX object", 42), ("[25/100] Linking", 25), ("-- Found OpenMP", None)],
    )
    def test_reads_make_and_ninja(self, line: str, percent: int | None) -> None:
        assert compiling.percent_of(line) == percent

    def test_is_sparse_where_there_is_no_terminal(self, capsys: pytest.CaptureFixture[str]) -> None:
        progress = compiling.Progress()
        for percent in range(101):
            progress.show(percent)
        assert 8 <= len(capsys.readouterr().err.splitlines()) <= 11


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    return {**os.environ, "LATHE_CACHE_DIR": str(tmp_path / "cache"), "LATHE_LLAMA_BACKEND": "cpu", **changes}


def run_build(tmp_path: Path, *arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, FOLDER / "build.py", *arguments],
        check=False,
        env=environment(tmp_path, **changes),
        capture_output=True,
        text=True,
        timeout=60,
    )
