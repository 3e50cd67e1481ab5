"""A step's process ends when it must, with everything that it started, and says how it ended."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from db.settings import Settings
from worker.child import Child
from worker.clock import host_seconds
from worker.launch import ForkServer, Launch, Launcher, Spawned
from worker.run_step import write_manifest
from worker.step import Message, StepInput
from worker.step_input import step_settings

if TYPE_CHECKING:
    from tests.worker.conftest import Processes

TOYS = Path(__file__).parent / "toys"
TOYS_PATH = f"{TOYS}{os.pathsep}{Path(__file__).parents[2]}"
# Of this process alone: what is left of a marked attempt is killed on the whole machine.
JOB = f"job-{os.getpid()}"
MARKER = f"{JOB}/train/1"


class Started:
    """A child that does one of the toy step's behaviours."""

    def __init__(
        self,
        folder: Path,
        what: str,
        *,
        lives: float = 30,
        module: str = "toy_step",
        launch: Launch = Spawned,
    ) -> None:
        work = folder / "work"
        work.mkdir()
        self.step_input = StepInput(
            job_id=JOB,
            kind="pretrain",
            step="train",
            attempt=1,
            params={"name": "m", "do": {"train": what}},
            folder=work,
            settings=step_settings(Settings(data_dir=folder)),
        )
        self.log = folder / "1.log"
        self.child = Child(
            module,
            self.step_input,
            deadline=host_seconds() + lives,
            marker=MARKER,
            environment={},
            log_path=self.log,
            launch=launch,
        )
        self.messages: list[Message] = []

    def listen(self, until: Callable[[], bool], *, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.child.tail
            self.messages += self.child.listen(0.1)

    def wait(self) -> None:
        self.listen(lambda: self.child.exit is not None)

    def wait_until_working(self) -> None:
        self.listen(lambda: any(message["type"] == "progress" for message in self.messages))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]


def until_ready(server: ForkServer, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not server.ready:
        assert not server.unusable
        assert time.monotonic() < deadline, "the fork server does not become ready"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def warm() -> Iterator[Launch]:
    """Forks the toy step from a process that has imported it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TOYS_PATH)
        server = ForkServer(["toy_step"], threads=1, idle_seconds=60)
        until_ready(server)
    launcher = Launcher({"toy_step": server})
    yield launcher
    launcher.close()


@pytest.fixture(params=["spawned", "forked"])
def launch(request: pytest.FixtureRequest) -> Launch:
    forked: Launch = request.getfixturevalue("warm") if request.param == "forked" else Spawned
    return forked


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch
) -> Iterator[Callable[..., Started]]:
    monkeypatch.setenv("PYTHONPATH", TOYS_PATH)
    started: list[Started] = []

    def start(what: str, *, lives: float = 30, module: str = "toy_step") -> Started:
        started.append(Started(tmp_path, what, lives=lives, module=module, launch=launch))
        return started[-1]

    yield start
    for one in started:
        one.child.close()


class TestEndsByItself:
    def test_a_result_comes_with_a_manifest(self, start: Callable[..., Started]) -> None:
        one = start("quick")
        one.wait()
        assert one.child.exit is not None
        assert one.child.exit.code == 0
        assert one.of("result")[0]["result"]["step"] == "train"
        [artifact] = one.of("artifact")
        assert (artifact["name"], artifact["path"]) == ("train.bin", "model/weights.bin")
        assert artifact["purpose"] is None
        manifest = json.loads((one.step_input.folder / "manifest.json").read_text())
        content = (one.step_input.folder / "model/weights.bin").read_bytes()
        assert manifest["files"] == {
            "model/weights.bin": {"bytes": 70_000, "sha256": hashlib.sha256(content).hexdigest()}
        }

    def test_what_it_prints_is_kept(self, start: Callable[..., Started]) -> None:
        one = start("crash")
        one.wait()
        assert one.child.exit is not None
        assert one.child.exit.code == 1
        assert one.child.tail.rstrip().endswith("RuntimeError: boom")
        assert one.log.read_text() == one.child.tail

    def test_a_signal_is_passed_on(self, start: Callable[..., Started]) -> None:
        one = start("segfault")
        one.wait()
        assert one.child.exit is not None
        assert one.child.exit.signal == signal.SIGSEGV
        assert str(one.child.exit) == "signal 11 (SIGSEGV)"
        assert "about to fall" in one.child.tail

    @pytest.mark.parametrize(
        ("what", "word", "code"),
        [
            ("refuse", "refused", "invalid_input"),
            ("exhaust", "exhausted", "out_of_memory"),
            ("fill_the_disk", "exhausted", "disk_full"),
            ("fill_the_memory", "exhausted", "out_of_memory"),
        ],
    )
    def test_errors_with_a_meaning_have_a_word(
        self, start: Callable[..., Started], what: str, word: str, code: str
    ) -> None:
        one = start(what)
        one.wait()
        assert [message["code"] for message in one.of(word)] == [code]

    def test_it_knows_no_setting_or_secret_of_its_worker(
        self, start: Callable[..., Started], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@host/db")
        monkeypatch.setenv("LATHE_API_KEY", "hunter2")
        one = start("slow")
        one.wait_until_working()
        environment = psutil.Process(one.child.pid).environ()
        assert "hunter2" not in " ".join(environment.values())
        assert environment["LATHE_ATTEMPT"] == MARKER

    def test_it_is_forked_where_a_process_is_warm(
        self, start: Callable[..., Started], launch: Launch
    ) -> None:
        one = start("slow")
        one.wait_until_working()
        command = " ".join(psutil.Process(one.child.pid).cmdline())
        assert ("worker.fork_server" in command) == (launch is not Spawned)


class TestIsEnded:
    def test_when_its_worker_is_gone(self, start: Callable[..., Started], processes: "Processes") -> None:
        one = start("stubborn")
        one.wait_until_working()
        assert len(processes(f"{JOB}/")) == 4  # guard, step, and the two that the step started
        one.child._orders.close()
        one.wait()
        assert one.child.exit is not None
        assert one.child.exit.signal == signal.SIGKILL

    def test_when_the_deadline_passes(self, start: Callable[..., Started]) -> None:
        started = time.monotonic()
        one = start("stubborn", lives=2)
        one.wait()
        assert 1.5 < time.monotonic() - started < 4

    def test_a_renewal_moves_the_deadline(self, start: Callable[..., Started]) -> None:
        one = start("slow", lives=1.5)
        one.child.renew(host_seconds() + 30)
        time.sleep(2)
        one.child.listen(0)
        assert one.child.exit is None

    def test_when_only_the_guard_is_killed(
        self, start: Callable[..., Started], processes: "Processes"
    ) -> None:
        one = start("stubborn")
        one.wait_until_working()
        os.kill(one.child.pid, signal.SIGKILL)
        one.wait()
        one.child.close()
        assert processes(f"{JOB}/") == []

    def test_by_force_when_it_will_not_go(
        self, start: Callable[..., Started], processes: "Processes"
    ) -> None:
        one = start("stubborn")
        one.wait_until_working()
        one.child.end(grace_seconds=0.5)
        one.child.close()
        assert one.child.exit is not None
        assert one.child.exit.signal == signal.SIGKILL
        assert processes(f"{JOB}/") == []


class TestManifest:
    def test_links_are_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(sys.executable)
        write_manifest(tmp_path)
        assert json.loads((tmp_path / "manifest.json").read_text()) == {"files": {}}
