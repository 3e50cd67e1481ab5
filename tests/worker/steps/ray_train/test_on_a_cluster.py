"""Fine-tunes by a real worker on a real Ray cluster of two CPU workers with gloo, which is disturbed."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from safetensors import safe_open
from sqlalchemy import select

from db.kinds import PARAMS
from db.models import Artifact, Attempt, Checkpoint, Event, Step
from db.queries.jobs import cancel_job, create_job, pause_job, resume_job
from db.session import transaction
from db.states import ENDED_JOB, JobKind, Outcome
from db.storage import attempt_folder
from worker.checkpoints import list_checkpoints, verify

if TYPE_CHECKING:
    from tests.worker.conftest import Bench
    from tests.worker.steps.ray_train.cluster import LocalCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROWS = "".join(f"Where is pot {n}?,Pot {n} stands in the kiln{' of clay' * (n % 4)}.\n" for n in range(18))
PARAMS_GIVEN: dict[str, Any] = {
    "base_model": "micro", "training_file": "file-1", "name": "x", "lora_rank": 4, "batch_size": 2,
    "gradient_accumulation_steps": 2, "max_steps": 40, "learning_rate": 5e-3, "save_steps": 2,
    "cluster": "lab",
}  # fmt: skip
PATIENCE_SECONDS = 300
CLUSTERS = """
[lab]
address = "127.0.0.1:{port}"
num_workers = 2
storage_path = "{folder}"
max_failures = 2

[brittle]
address = "127.0.0.1:{port}"
num_workers = 2
max_failures = 0

[gone]
address = "127.0.0.1:1"
num_workers = 2
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["LocalCluster"]:
    from tests.worker.steps.ray_train.cluster import LocalCluster

    cluster = LocalCluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.stop()


class Lab:
    """Fine-tunes on the cluster, and what may happen to them."""

    def __init__(self, bench: "Bench", cluster: "LocalCluster") -> None:
        self.bench, self.cluster = bench, cluster
        self.root = bench.settings.storage_root
        bench.add_training_file("question,answer\n" + ROWS)
        bench.start_worker("serve_clusters.py")

    def submit(self, **params: Any) -> str:
        given = PARAMS["fine_tune"].model_validate({**PARAMS_GIVEN, **params}).model_dump(mode="json")
        with transaction(self.bench.factory) as session:
            options: dict[str, Any] = {"project_id": "default", "kind": JobKind.FINE_TUNE, "params": given}
            return create_job(session, max_attempts=1, **options).id

    def step(self, job_id: str) -> Step:
        return next(step for step in self.bench.job(job_id).steps if step.name == "train")

    def folder(self, job_id: str, attempt: int = 1) -> Path:
        return attempt_folder(self.root, job_id, "train", attempt)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self.bench.wait_for(condition, seconds=PATIENCE_SECONDS)

    def has_saved(self, job_id: str, attempt: int = 1, checkpoints: int = 1) -> None:
        """Wait until it trains, and has so many checkpoints."""

        def saved() -> bool:
            assert self.bench.job(job_id).status not in ENDED_JOB, (
                self.bench.job(job_id).error,
                self.bench.logs(),
            )
            return len(list_checkpoints(self.folder(job_id, attempt))) >= checkpoints

        self.wait_for(saved)

    def ended(self, job_id: str) -> Any:
        return self.bench.ended(job_id, seconds=PATIENCE_SECONDS)

    def said(self, job_id: str) -> str:
        with self.bench.factory() as session:
            query = select(Event.message).where(Event.job_id == job_id).order_by(Event.id)
            return "\n".join(session.scalars(query))

    def left_nothing(self) -> None:
        """See that nothing of a training runs or lies about any more."""
        self.wait_for(lambda: not self.cluster.actors())
        self.wait_for(lambda: not list(self.bench.folder.rglob("group-*")))


@pytest.fixture
def lab(bench: "Bench", cluster: "LocalCluster", micro_model: Path, tmp_path: Path) -> Lab:
    models = tmp_path / "models"
    models.mkdir()
    (models / "micro").symlink_to(micro_model)
    clusters = tmp_path / "clusters.toml"
    clusters.write_text(CLUSTERS.format(port=cluster.port, folder=tmp_path / "scratch"))
    bench.settings = bench.settings.model_copy(
        update={"base_models_dir": models, "ray_clusters": clusters, "threads": 1, "lease_seconds": 30.0}
    )
    return Lab(bench, cluster)


def test_a_killed_worker_is_recovered_and_the_adapter_is_exported(lab: Lab) -> None:
    job_id = lab.submit()
    lab.has_saved(job_id)
    os.kill(lab.cluster.workers()[-1].pid, signal.SIGKILL)
    job = lab.ended(job_id)
    assert job.status == "succeeded", (job.error, lab.bench.logs())

    result = lab.step(job_id).result or {}
    assert (result["steps"], result["processes"]) == (40, 2)
    said = lab.said(job_id)
    assert "2 workers of the cluster lab train, with 1 CPU each." in said
    assert "2 processes train together: of the 4 rows of a step of the optimizer each takes 2" in said
    assert "Ray has started the workers again, time 1 of at most 2" in said
    assert "They go on from the checkpoint of step" in said
    with lab.bench.factory() as session:
        names = set(session.scalars(select(Artifact.name).where(Artifact.job_id == job_id)))
        rows = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.path.contains("/train/"))
        numbers = {row.step_number for row in session.scalars(rows)}
        attempts = list(session.scalars(select(Attempt).where(Attempt.step_id == lab.step(job_id).id)))
    assert [attempt.outcome for attempt in attempts] == [Outcome.DONE]
    assert {"adapter_model.safetensors", "adapter_config.json", "step_metrics.csv"} <= names
    assert any(name.endswith(".gguf") for name in names), names
    kept = list_checkpoints(lab.folder(job_id))
    assert numbers == {int(path.name.removeprefix("checkpoint-")) for path in kept}
    for checkpoint in kept:
        verify(checkpoint)
    with safe_open(lab.folder(job_id) / "adapter" / "adapter_model.safetensors", "pt") as adapter:
        assert all(adapter.get_tensor(name).isfinite().all() for name in adapter.keys())  # noqa: SIM118
    assert not (lab.folder(job_id) / ".arriving").exists()
    lab.left_nothing()


def test_its_answers_are_judged_where_they_are_written(lab: Lab) -> None:
    given = {"rewards": ["brevity"], "num_generations": 2, "max_completion_length": 8, "max_steps": 4}
    job_id = lab.submit(method="grpo", bits=16, **given)
    job = lab.ended(job_id)
    assert job.status == "succeeded", (job.error, lab.bench.logs())
    result = lab.step(job_id).result or {}
    assert (result["steps"], result["processes"]) == (4, 2)
    assert 0 <= result["final_reward"] <= 1
    assert result["rewards"].keys() == {"brevity"}
    lab.left_nothing()


def test_paused_it_saves_and_goes_on(lab: Lab) -> None:
    job_id = lab.submit(max_steps=60)
    lab.has_saved(job_id)
    with transaction(lab.bench.factory) as session:
        pause_job(session, job_id, project_id="default")
    lab.wait_for(lambda: lab.bench.job(job_id).status == "paused")
    lab.left_nothing()
    saved = list_checkpoints(lab.folder(job_id))[0]
    with transaction(lab.bench.factory) as session:
        resume_job(session, job_id, project_id="default")
    lab.bench.doorbell.ring("train")
    assert lab.ended(job_id).status == "succeeded", lab.bench.logs()
    number = saved.name.removeprefix("checkpoint-")
    assert f"Saved at step {number}, to go on from there." in lab.said(job_id)
    assert f"Going on from the checkpoint of step {number}." in lab.said(job_id)


def test_cancelled_it_leaves_nothing_running(lab: Lab) -> None:
    job_id = lab.submit(max_steps=4000)
    lab.has_saved(job_id)
    with transaction(lab.bench.factory) as session:
        cancel_job(session, job_id, project_id="default")
    lab.wait_for(lambda: lab.bench.job(job_id).status == "cancelled")
    lab.wait_for(lambda: not lab.cluster.actors())


def test_one_that_is_away_is_named_and_not_its_address(lab: Lab) -> None:
    job = lab.ended(lab.submit(cluster="gone"))
    assert job.status == "failed"
    assert "The cluster gone cannot be joined: see that it runs" in job.error["message"]
    assert "127.0.0.1" not in job.error["message"]


def test_lost_more_often_than_allowed_is_the_steps_error(lab: Lab) -> None:
    job_id = lab.submit(cluster="brittle", max_steps=4000)
    lab.has_saved(job_id)
    os.kill(lab.cluster.workers()[0].pid, signal.SIGKILL)
    job = lab.ended(job_id)
    assert job.status == "failed"
    assert "lost workers more often than max_failures, 0, allows" in job.error["message"]
    lab.wait_for(lambda: not lab.cluster.actors())
