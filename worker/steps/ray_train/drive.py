"""The step drives a training on a cluster: it joins, has Ray Train start the workers, and answers them.

Ray Train keeps the number of workers: it starts them all again when one is lost. What they go on from is not
Ray's but Lathe's own, verified checkpoint, so no disk need be shared by the machines.
"""

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from db.errors import Unavailable
from training_data.ray_clusters import RayCluster, require_ray
from worker.step import RankFailed, Step, Stopped
from worker.step_process import result_of
from worker.steps.base_model import weight_files
from worker.steps.ray_train.desk import Desk, files_under
from worker.steps.ray_train.mailbox import Mailbox
from worker.steps.runtime import ENVIRONMENT

CONNECT_SECONDS = 10.0
TAKE_SECONDS = 0.5
# Of the 18 s in which a step that is asked to stop has to be gone.
SAVE_SECONDS = 14.0
PREPARED = ("train.jsonl", "train.tokens", "validation.jsonl", "validation.tokens")
# Of a base's folder, besides its weights.
BASE_FILES = (".json", ".jinja", ".model", ".txt")
# Nothing is told to Ray's makers, and Ray leaves to us what a worker without a GPU sees.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def train_on_cluster(step: Step, base: Path, work: dict[str, Any], workers: int) -> dict[str, Any]:
    """Have `train.run_rank(step, work)` run by so many workers of the cluster that the job names.

    Returns:
        what the first of them returned.
    Raises:
        InvalidInput: Ray is not installed, or a machine cannot train as it is.
        Unavailable: the cluster cannot be reached.
        RankFailed: workers were lost more often than the operator allows.
        Stopped, Exhausted, MemoryError: the training ended so.
    """
    cluster = RayCluster.model_validate(step.input.cluster)
    require_ray({cluster.name: cluster})
    os.environ.update(RAY_ENVIRONMENT)
    import ray

    root = Path(cluster.storage_path or tempfile.gettempdir()) / f"lathe-training-{os.getuid()}"
    name = f"{step.input.job_id}-{step.input.attempt}"
    desk = Desk(step, _inputs(step, base), cluster.max_failures)
    with _joined(cluster, root / "runs" / name):
        step.save_when_stopped()  # Ray has taken the signal for itself
        mailbox: Any = ray.remote(num_cpus=0, max_concurrency=1000)(Mailbox).remote()
        given = {
            "mailbox": mailbox,
            "input": _without_secrets(step).to_json(),
            "work": work,
            "folder": str(root / name),
            "threads": cluster.threads,
        }
        _tell_start(step, cluster, workers)
        fit = _Fit(_trainer(cluster, workers, given, root / "runs", name))
        fit.start()
        _answer(step, desk, mailbox, fit)
    if desk.ending is not None:
        return result_of(desk.ending)
    raise RankFailed(
        f"The cluster {cluster.name} lost workers more often than max_failures, {cluster.max_failures}, "
        f"allows: {desk.last_loss or fit.told}"
    ) from fit.error


class _Fit(threading.Thread):
    """Ray Train's own loop, which blocks until the training is over."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="ray-train", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits for this one
            self.error = error

    @property
    def told(self) -> str:
        lines = str(self.error).strip().splitlines() if self.error is not None else []
        return lines[-1] if lines else "they ended without a word."


def _answer(step: Step, desk: Desk, mailbox: Any, fit: _Fit) -> None:
    """Answer the workers until the training is over.

    Raises:
        Stopped: they did not save in time.
    """
    import ray

    gone_by: float | None = None
    while True:
        over = desk.is_closed or not fit.is_alive()
        for number, request in ray.get(mailbox.take.remote(0.0 if over else TAKE_SECONDS)):
            ray.get(mailbox.answer.remote(number, desk.answer(request)))
        if over:
            return
        if step.stop_asked and gone_by is None:
            gone_by = time.monotonic() + SAVE_SECONDS
            mailbox.stop.remote()
        if gone_by is not None and time.monotonic() >= gone_by:
            step.event(
                "The workers did not save in time: what they did since the last checkpoint is lost.",
                level="warn",
            )
            raise Stopped


@contextmanager
def _joined(cluster: RayCluster, run: Path) -> Iterator[None]:
    """Be a driver of the cluster; when it leaves, Ray ends all that it started."""
    import ray

    unreachable = Unavailable(
        f"The cluster {cluster.name} cannot be joined: see that it runs, and that the worker of this server "
        "that trains is on one of its machines."
    )
    _see_that_it_listens(cluster.address, unreachable)
    try:
        ray.init(cluster.address, namespace="lathe", log_to_driver=True, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise unreachable from error
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(run, ignore_errors=True)


def _see_that_it_listens(address: str, unreachable: Unavailable) -> None:
    """Ray itself would try for minutes, and end the process after that."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError:
        raise unreachable from None


def _trainer(cluster: RayCluster, workers: int, given: dict[str, Any], runs: Path, name: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    mailbox = given["mailbox"]

    class TellsWhy(UserCallback):  # in Ray's own process, before the workers are started again
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            import ray

            lines = {rank: str(error).strip().splitlines() for rank, error in worker_exceptions.items()}
            why = [f"rank {rank}: {told[-1][:200]}" for rank, told in lines.items() if told]
            ray.get(mailbox.ask.remote({"what": "lost", "why": "; ".join(why)}))

    def on_worker(given: dict[str, Any]) -> None:
        from worker.steps.ray_train.on_worker import train

        train(given)

    class Trainer(TorchTrainer):  # type: ignore[misc, unused-ignore]
        def _create_default_callbacks(self) -> list[Any]:
            # Its cleaner outlives a driver that is killed, and without Ray's dashboard for ever. What it is
            # to clean goes with the driver anyway.
            every = super()._create_default_callbacks()
            return [each for each in every if not isinstance(each, PlacementGroupCleanerCallback)]

    return Trainer(
        on_worker,
        train_loop_config=given,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=cluster.resources_per_worker or None,
            placement_strategy=cluster.placement_strategy,
            accelerator_type=cluster.accelerator_type,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(runs),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[TellsWhy()],
            worker_runtime_env={"env_vars": ENVIRONMENT},
        ),
    )


def _tell_start(step: Step, cluster: RayCluster, workers: int) -> None:
    """Say what is reserved, and when that has to be waited for."""
    import ray

    wanted = {name: amount * workers for name, amount in cluster.reserved.items()}
    there = ray.cluster_resources()
    lacking = {name: amount for name, amount in wanted.items() if there.get(name, 0) < amount}
    step.event(
        f"{workers} workers of the cluster {cluster.name} train, with {_amounts(cluster.reserved)} each.",
        cluster=cluster.name,
        workers=workers,
    )
    if lacking:
        has = _amounts({name: there.get(name, 0) for name in lacking})
        step.event(
            f"That is {_amounts(lacking)}, and the cluster has {has}: the training waits for more.",
            level="warn",
        )


def _amounts(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _inputs(step: Step, base: Path) -> dict[str, Path]:
    """The files that a worker needs, by the names that they have in its folder."""
    prepared = step.input.step_folders["prepare"]
    of_base = [path for path in base.iterdir() if path.suffix in BASE_FILES]
    folders = {
        "base": files_under(base, [*of_base, *weight_files(base)]),
        "prepare": files_under(prepared, [prepared / name for name in PREPARED]),
        "prepare/tokenizer": files_under(prepared / "tokenizer"),
        "start": files_under(step.input.start) if step.input.start is not None else {},
    }
    return {f"{folder}/{name}": path for folder, files in folders.items() for name, path in files.items()}


def _without_secrets(step: Step) -> Any:
    settings = replace(step.input.settings, hub_token="", chat_server_key="", embedding_server_key="")
    return replace(step.input, settings=settings, cluster=None)
