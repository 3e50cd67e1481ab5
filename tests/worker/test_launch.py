"""Steps are forked from a process that is warm; whatever becomes of it, they start."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.worker.test_run_step import TOYS_PATH, Started, until_ready
from worker.launch import ForkServer, Launcher
from worker.steps import ASKING, EMBEDDING, READING


@pytest.fixture
def server_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ForkServer]]:
    monkeypatch.setenv("PYTHONPATH", TOYS_PATH)
    servers: list[ForkServer] = []

    def server_of(*modules: str, idle_seconds: float = 60) -> ForkServer:
        servers.append(ForkServer(modules, threads=1, idle_seconds=idle_seconds))
        return servers[-1]

    yield server_of
    for server in servers:
        server.close()


def run(folder: Path, server: ForkServer) -> bool:
    """Run a step to its end. Whether it was forked."""
    folder.mkdir()
    one = Started(folder, "quick", launch=Launcher({"toy_step": server}))
    forked = psutil.Process(one.child.pid).ppid() != os.getpid()
    one.wait()
    one.child.close()
    assert one.child.exit is not None
    assert one.child.exit.code == 0
    return forked


def test_the_first_step_does_not_wait_for_it(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    server = server_of("toy_step")
    assert not run(tmp_path / "1", server)
    until_ready(server)
    assert run(tmp_path / "2", server)


def test_one_that_was_killed_is_started_again(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    server = server_of("toy_step")
    until_ready(server)
    [process] = [each for each in psutil.Process().children() if "worker.fork_server" in each.cmdline()]
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=5)
    assert not run(tmp_path / "1", server)
    until_ready(server)
    assert run(tmp_path / "2", server)


def test_it_ends_when_idle_and_its_steps_go_on(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    server = server_of("toy_step", idle_seconds=0.5)
    until_ready(server)
    one = Started(tmp_path, "slow", launch=Launcher({"toy_step": server}))
    one.wait_until_working()
    parent = psutil.Process(one.child.pid).parent()
    assert parent is not None
    psutil.wait_procs([parent], timeout=10)
    assert not [each for each in psutil.Process().children() if "worker.fork_server" in each.cmdline()]
    one.child.listen(0.1)
    assert one.child.exit is None
    one.child.end(grace_seconds=5)
    one.child.close()
    assert one.child.exit is not None


def test_what_has_threads_is_not_forked(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    """A thread's locks would stay locked in a process that is forked."""
    (tmp_path / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TOYS_PATH}{os.pathsep}{tmp_path}")
        server = server_of("threaded")
        deadline = time.monotonic() + 30
        while not server.unusable:
            assert not server.ready
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert not run(tmp_path / "1", server)


def test_what_documents_and_prompts_need_is_loaded_without_threads(
    server_of: Callable[..., ForkServer], tmp_path: Path
) -> None:
    groups = (READING, EMBEDDING, ASKING)
    warm = [name for group in groups for name in group.modules(embedded_by_server=False)]
    server = server_of(*warm, "toy_step")
    until_ready(server, seconds=300)
    assert run(tmp_path / "1", server)


def test_no_weights_are_loaded_where_the_server_embeds(server_of: Callable[..., ForkServer]) -> None:
    until_ready(server_of(*EMBEDDING.modules(embedded_by_server=True), "toy_step"), seconds=300)
    [process] = [each for each in psutil.Process().children() if "worker.fork_server" in each.cmdline()]
    assert not [each.path for each in process.memory_maps() if "libtorch" in each.path]


def test_each_has_a_chance_of_its_own(server_of: Callable[..., ForkServer], tmp_path: Path) -> None:
    server = server_of("toy_step", "numpy.random")
    until_ready(server)
    drawn = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = Started(folder, "draws", launch=Launcher({"toy_step": server}))
        one.wait()
        one.child.close()
        drawn.append(one.of("result")[0]["result"])
    assert drawn[0]["numpy"] != drawn[1]["numpy"]
    assert drawn[0]["random"] != drawn[1]["random"]
