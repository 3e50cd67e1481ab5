"""Real trainings by real workers, killed at any moment: each ends, to the last bit, as if left in peace."""

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text

from db.kinds import PARAMS
from db.models import Artifact, Attempt, Event, Job, Step
from db.session import transaction
from db.states import ENDED_JOB, JobKind, Outcome, StepStatus
from db.storage import attempt_folder
from tests.rows import add_job
from tests.worker.steps.conftest import StepRunner
from tests.worker.steps.fine_tuning import WARNINGS_OF_LIBRARIES
from worker.checkpoints import FOLDER, STAGING, list_checkpoints, number_of
from worker.steps import prepare, train

if TYPE_CHECKING:
    from tests.worker.conftest import Bench

ROWS = "".join(f"Where is pot {n}?,Pot {n} stands in the kiln{' of clay' * (n % 4)}.\n" for n in range(18))
PARAMS_GIVEN = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "lora_rank": 4, "batch_size": 2,
    "max_steps": 40, "learning_rate": 5e-3, "save_steps": 2, "lora_dropout": 0.1, "keep_checkpoints": 3,
}  # fmt: skip
pytestmark = WARNINGS_OF_LIBRARIES
KILLS = 20
KILLS_A_JOB = 5
PATIENCE_SECONDS = 240  # on cores that others keep busy


class Trainings:
    """Fine-tunes of one small model, run by real workers, and what may happen to them."""

    def __init__(self, bench: "Bench") -> None:
        self.bench = bench
        self.root = bench.settings.storage_root
        bench.add_training_file("question,answer\n" + ROWS)
        self.start_worker()

    def start_worker(self) -> None:
        self.worker = self.bench.start_worker("serve_training.py")

    def submit(self) -> str:
        params = PARAMS["fine_tune"].model_validate(PARAMS_GIVEN).model_dump(mode="json")
        with transaction(self.bench.factory) as session:
            job = add_job(session, kind=JobKind.FINE_TUNE, params=params, max_attempts=99)
            return job.id

    def train_step(self, job_id: str) -> Step:
        return next(step for step in self.bench.job(job_id).steps if step.name == "train")

    def attempts(self, job_id: str) -> list[Attempt]:
        with self.bench.factory() as session:
            query = select(Attempt).where(Attempt.step_id == self.train_step(job_id).id)
            return list(session.scalars(query.order_by(Attempt.number)))

    def folder(self, job_id: str, attempt: int) -> Path:
        return attempt_folder(self.root, job_id, "train", attempt)

    def running(self, job_id: str, attempt: int) -> int:
        """Wait until that attempt of the training has a process. Gives its group."""
        self.wait_for(lambda: len(self.attempts(job_id)) >= attempt)
        self.wait_for(lambda: self.attempts(job_id)[attempt - 1].pid is not None)
        return int(self.attempts(job_id)[attempt - 1].pid or 0)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self.bench.wait_for(condition, seconds=PATIENCE_SECONDS)

    def stop_when(self, job_id: str, attempt: int, moment: Callable[[Path], bool]) -> int:
        """Stop the attempt's processes when something is true of its folder, and still is then.

        Returns:
            their group.
        """
        group, folder = self.running(job_id, attempt), self.folder(job_id, attempt)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            if moment(folder):
                os.killpg(group, signal.SIGSTOP)
                if moment(folder):
                    return group
                os.killpg(group, signal.SIGCONT)
            time.sleep(0.002)
        raise AssertionError(self.bench.logs())

    def kill_mid_save(self, job_id: str, attempt: int, *, checkpoints: int = 1, worker: bool = False) -> None:
        """Kill while a checkpoint is being written, when so many are whole."""
        group = self.stop_when(
            job_id, attempt, lambda folder: saving(folder) and whole(folder) >= checkpoints
        )
        self.kill(group, worker=worker)

    def kill_after(self, seconds: float, job_id: str, attempt: int, *, worker: bool = False) -> bool:
        """Kill so long after the attempt's start. Whether it had not ended by then."""
        group = self.running(job_id, attempt)
        time.sleep(seconds)
        if self.attempts(job_id)[attempt - 1].ended_at is not None:
            return False
        self.kill(group, worker=worker)
        return True

    def kill(self, group: int, *, worker: bool) -> None:
        """Kill the step's processes; with `worker` only that, which has to be enough for them to end."""
        if worker:
            self.worker.kill()
            self.worker.wait()
            os.killpg(group, signal.SIGCONT)
        else:
            os.killpg(group, signal.SIGKILL)
        self.wait_for(lambda: not alive(group))
        if worker:
            with transaction(self.bench.factory) as session:
                # Half a minute later: so long do leases last here, lest one lapses on cores that others hold.
                session.execute(text("UPDATE steps SET lease_expires_at = now() WHERE status = 'running'"))

    def go_on(self, job_id: str, attempt: int) -> None:
        """See that the killed attempt is known to be lost, and let no backoff be waited for."""
        if self.worker.poll() is not None:
            self.start_worker()
        self.wait_for(lambda: self.attempts(job_id)[attempt - 1].ended_at is not None)
        with transaction(self.bench.factory) as session:
            session.execute(text("UPDATE steps SET not_before = NULL"))
        self.bench.doorbell.ring("train")

    def adapter(self, job_id: str) -> str:
        """Wait for the job to succeed. Gives the sha256 of its adapter."""
        self.wait_for(lambda: self.bench.job(job_id).status in ENDED_JOB)
        job: Job = self.bench.job(job_id)
        assert job.status == "succeeded", (job.error, self.bench.logs())
        with self.bench.factory() as session:
            query = select(Artifact.sha256).where(
                Artifact.job_id == job_id, Artifact.name == "adapter_model.safetensors"
            )
            return session.scalars(query).one()

    def messages(self, job_id: str) -> list[str]:
        with self.bench.factory() as session:
            return list(
                session.scalars(select(Event.message).where(Event.job_id == job_id).order_by(Event.id))
            )


def saving(folder: Path) -> bool:
    return (folder / FOLDER / STAGING).exists()


def whole(folder: Path) -> int:
    return len(list_checkpoints(folder))


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def trainings(bench: "Bench", micro_model: Path, tmp_path: Path) -> Trainings:
    models = tmp_path / "models"
    models.mkdir()
    (models / "micro").symlink_to(micro_model)
    bench.settings = bench.settings.model_copy(
        update={"base_models_dir": models, "threads": 1, "lease_seconds": 30.0}
    )
    return Trainings(bench)


@pytest.fixture
def undisturbed(steps: StepRunner, micro_model: Path, tmp_path: Path) -> str:
    """The adapter's sha256 when nothing happens; trained here, in one go."""
    data = tmp_path / "rows.csv"
    data.write_text("question,answer\n" + ROWS)
    given: dict[str, Any] = {"params": PARAMS_GIVEN, "base": micro_model}
    prepared = steps.run(prepare.run, "fine_tune", "prepare", files={"file-1": data}, **given)
    ran = steps.run(train.run, "fine_tune", "train", earlier={"prepare": prepared}, **given)
    return hashlib.sha256((ran.folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_killed_in_mid_save_then_damaged(trainings: Trainings, undisturbed: str) -> None:
    """The step is killed while a checkpoint is written, when the newest whole one has just lost a bit."""
    job_id = trainings.submit()
    group = trainings.stop_when(job_id, 1, lambda folder: saving(folder) and whole(folder) >= 2)
    newest, before = [number_of(path) for path in list_checkpoints(trainings.folder(job_id, 1))[:2]]
    flip_a_bit(trainings.folder(job_id, 1) / FOLDER / f"checkpoint-{newest}" / "optimizer.pt")
    trainings.kill(group, worker=False)
    trainings.go_on(job_id, 1)
    adapter = trainings.adapter(job_id)
    attempts = trainings.attempts(job_id)
    assert [attempt.outcome for attempt in attempts] == [Outcome.LOST, Outcome.DONE]
    assert [attempt.resumed_from for attempt in attempts] == [None, before]
    assert trainings.train_step(job_id).failures == 1
    assert passed_over(newest) in trainings.messages(job_id)
    assert adapter == undisturbed


@pytest.mark.slow  # three workers, each of which imports what a training needs; test_going_on.py is short
def test_worker_killed_in_mid_save_then_damaged_then_drained(trainings: Trainings, undisturbed: str) -> None:
    """The worker is killed while a checkpoint is written, and the newest whole one loses a bit; the second
    worker is asked to stop; the third ends the training.
    """
    job_id = trainings.submit()
    trainings.kill_mid_save(job_id, 1, checkpoints=2, worker=True)
    newest, before = [number_of(path) for path in list_checkpoints(trainings.folder(job_id, 1))[:2]]
    flip_a_bit(trainings.folder(job_id, 1) / FOLDER / f"checkpoint-{newest}" / "optimizer.pt")

    trainings.start_worker()
    trainings.stop_when(job_id, 2, lambda folder: whole(folder) >= 2)
    started = time.monotonic()
    trainings.worker.send_signal(signal.SIGTERM)
    assert trainings.worker.wait(60) == 0, trainings.bench.logs()
    assert time.monotonic() - started < 30
    assert trainings.train_step(job_id).status == StepStatus.QUEUED
    saved = number_of(list_checkpoints(trainings.folder(job_id, 2))[0])

    trainings.start_worker()
    adapter = trainings.adapter(job_id)
    attempts = trainings.attempts(job_id)
    assert [attempt.outcome for attempt in attempts] == [Outcome.LOST, Outcome.RELEASED, Outcome.DONE]
    assert [attempt.resumed_from for attempt in attempts] == [None, before, saved]
    assert trainings.train_step(job_id).failures == 1
    said = trainings.messages(job_id)
    assert passed_over(newest) in said
    assert f"Saved at step {saved}, to go on from there." in said
    assert adapter == undisturbed


@pytest.mark.slow
def test_killed_at_twenty_moments(trainings: Trainings, undisturbed: str) -> None:
    """Half of the kills in mid-save, half at any moment; half of the step's processes, half of the worker."""
    rng = random.Random(7)  # noqa: S311 - reproducible, not secret
    first = trainings.submit()
    assert trainings.adapter(first) == undisturbed
    row = trainings.attempts(first)[0]
    assert row.ended_at is not None
    whole_run = (row.ended_at - row.started_at).total_seconds()
    kills = 0
    while kills < KILLS:
        job_id, attempt, end = trainings.submit(), 1, min(KILLS, kills + KILLS_A_JOB)
        while kills < end:
            worker = kills % 4 >= 2
            if kills % 2:
                trainings.kill_mid_save(job_id, attempt, checkpoints=rng.randint(0, 3), worker=worker)
            elif not trainings.kill_after(rng.uniform(0, whole_run), job_id, attempt, worker=worker):
                break
            trainings.go_on(job_id, attempt)
            kills, attempt = kills + 1, attempt + 1
        assert trainings.adapter(job_id) == undisturbed
        outcomes = [row.outcome for row in trainings.attempts(job_id)]
        assert outcomes == [Outcome.LOST] * (attempt - 1) + [Outcome.DONE]


def passed_over(step: int) -> str:
    return (
        f"The checkpoint of step {step} is not whole and is passed over: "
        "optimizer.pt has another sha256 than when it was written."
    )


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    # A new file: the old one may be linked from elsewhere.
    path.unlink()
    path.write_bytes(content)
