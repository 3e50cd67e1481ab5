"""What a training measures arrives in trackers, by a real child, and their failures are no job's.

trackio and wandb are not installed for the tests: docs/experiments.md tells how they were tried.
"""

import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from db import settings as settings_module
from db.errors import InvalidInput
from db.settings import Settings, load_settings
from tests.worker.test_run_step import MARKER
from worker.child import Child
from worker.clock import host_seconds
from worker.step import Message, StepInput
from worker.step_input import step_settings
from worker.trackers import SECRETS

TOYS = Path(__file__).parent / "toys"


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{TOYS}{os.pathsep}{Path(__file__).parents[2]}")


def run_step(folder: Path, *, attempt: int, first: int) -> list[Message]:
    """Run a real child that measures three training steps; gives what it said."""
    work = folder / str(attempt)
    work.mkdir(parents=True)
    step_input = StepInput(
        job_id="job-1",
        kind="pretrain",
        step="train",
        attempt=attempt,
        params={"name": "m", "do": {"train": "measures"}, "first": first},
        folder=work,
        settings=step_settings(Settings(data_dir=folder, trackers=["tensorboard"])),
    )
    log = folder / f"{attempt}.log"
    child = Child(
        "toy_step",
        step_input,
        deadline=host_seconds() + 60,
        marker=MARKER,
        environment={},
        log_path=log,
    )
    messages: list[Message] = []
    give_up = time.monotonic() + 60
    try:
        while child.exit is None:
            assert time.monotonic() < give_up, child.tail
            messages += child.listen(0.1)
    finally:
        child.close()
    assert child.exit is not None
    assert child.exit.code == 0, child.tail
    return messages


def events_of(file: Path) -> list[Any]:
    """The records of a TensorBoard file: a length and its checksum, the record and its checksum."""
    content, events, at = file.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return events


def told(messages: list[Message]) -> list[tuple[str, str]]:
    return [(said["level"], said["message"]) for said in messages if said["type"] == "event"]


def test_tensorboard_gets_each_value_and_attempts_share_a_run(tmp_path: Path) -> None:
    messages = run_step(tmp_path, attempt=1, first=1)
    run = tmp_path / "tracking" / "tensorboard" / "m-job-1"
    assert told(messages) == [("info", f"What is measured goes to tensorboard too: {run}")]
    [first_file] = run.iterdir()
    values = {
        (event.step, value.tag): value.simple_value
        for event in events_of(first_file)
        for value in event.summary.value
    }
    assert values == pytest.approx({(n, "train/loss"): 1 / n for n in (1, 2, 3)})
    run_step(tmp_path, attempt=2, first=2)
    [second_file] = set(run.iterdir()) - {first_file}
    # TensorBoard then hides what the first attempt wrote from step 2 on.
    assert [event.step for event in events_of(second_file) if event.HasField("session_log")] == [2]


def test_one_that_fails_is_said_once_and_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("in the way")
    messages = run_step(tmp_path, attempt=1, first=1)
    [(level, message)] = told(messages)
    assert level == "warn"
    assert message.startswith("tensorboard is left out, and the job goes on without it: NotADirectoryError")
    assert len([said for said in messages if said["type"] == "metrics"]) == 3
    assert messages[-1]["type"] == "result"


def test_what_an_error_says_of_an_address_holds_no_secret() -> None:
    error = "ConnectError: https://me:pass@tracker.example/log?write_token=abc refused"
    assert SECRETS.sub("", error) == "ConnectError: https://tracker.example/log refused"


class TestSettings:
    def test_are_names_between_commas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATHE_TRACKERS", "tensorboard, wandb")
        assert load_settings().trackers == ["tensorboard", "wandb"]

    def test_that_name_an_unknown_one_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LATHE_TRACKERS", "tensorboard,mlflow")
        with pytest.raises(InvalidInput, match="'tensorboard', 'trackio' or 'wandb'"):
            load_settings()

    def test_that_name_one_without_its_package_are_refused_with_the_fix(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(settings_module.TRACKER_PACKAGES, "wandb", "no_such_package")
        with pytest.raises(InvalidInput, match=r"pip install -e '\.\[wandb\]'"):
            Settings(trackers=["tensorboard", "wandb"]).require_trackers()
        Settings(trackers=["tensorboard"]).require_trackers()
