"""One worker process: Celery's worker with our options, and what it needs beside it."""

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import bootsteps, signals
from celery.exceptions import SecurityWarning

from db import models
from db.doorbell import Doorbell
from db.logs import configure_logs
from db.queries.devices import register_device
from db.session import SessionFactory, make_engine, make_session_factory, transaction, unless_away
from db.settings import Settings
from db.states import DEVICE_QUEUES
from db.storage import claim_storage_root
from serving.devices import NONE, Device, choose_devices, visible_devices
from training_data.ray_clusters import read_clusters, require_ray
from worker.app import SPARE_THREADS, app
from worker.clearing import serves_from
from worker.launch import ForkServer, Launcher
from worker.monitor import listen_for_revokes
from worker.runner import Runner
from worker.step_input import embedder_of
from worker.steps import Warm
from worker.sweep import Sweeper, end_lost_attempts

STOP_WITHIN_SECONDS = 25
DATABASE_WAIT_SECONDS = 1

log = structlog.get_logger(__name__)


class SweepStep(bootsteps.StartStopStep):
    """Sweeps for as long as the worker works; it starts last and stops first."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._sweeper: Sweeper | None = None

    def start(self, parent: Any) -> None:
        if app.runner is not None:
            self._sweeper = Sweeper(app.runner, pid=os.getpid())
            self._sweeper.start()

    def stop(self, parent: Any) -> None:
        # If Celery fell, as it may over a broker's restart, it waits for what runs, however long that takes.
        if app.runner is not None:
            app.runner.stopping.set()
        if self._sweeper is not None:
            self._sweeper.stop()


def serve(settings: Settings, modules: Mapping[tuple[str, str], str], warm: Sequence[Warm] = ()) -> int:
    """Work until a signal says to stop. SIGTERM ends the children and hands their steps back.

    Args:
        modules: for each kind's steps, the module that does it.
        warm: steps that are forked from processes which hold what they need.
    Returns:
        the process's exit status.
    Raises:
        InvalidInput: a tracker that the settings name is not installed, or Ray is not and they name clusters.
        Conflict: the storage root belongs to another database.
        InvalidInput: a device that the settings name does not exist.
    """
    settings.require_trackers()
    if settings.train_concurrency:
        require_ray(read_clusters(settings.ray_clusters))
    configure_logs(settings)
    devices = devices_of(settings)
    threads = sum(settings.concurrency.values()) + SPARE_THREADS
    engine = make_engine(
        settings.require_database_url(), pool_size=threads + 2, idle_seconds=settings.lease_seconds
    )
    factory = make_session_factory(engine)
    doorbell = Doorbell(settings.require_redis_url())
    launcher = Launcher(_fork_servers(settings, warm, devices))
    try:
        _when_database_answers(lambda: _join(factory, settings, devices))
        doorbell.listen(factory)
        app.runner = runner = Runner(settings, factory, doorbell, modules, devices, launch=launcher)
        # First, so that what the worker before us was torn from is back in the line when we claim.
        _when_database_answers(lambda: end_lost_attempts(runner, wait=True))
        return _work(runner)
    finally:
        launcher.close()
        doorbell.close()
        engine.dispose()


def _fork_servers(settings: Settings, warm: Sequence[Warm], devices: list[Device]) -> dict[str, ForkServer]:
    """A fork server for each of `warm`, by the modules of its steps."""
    # Where the worker holds none, its steps see every GPU that it does, and CUDA survives no fork.
    if settings.warm_seconds == 0 or (not devices and visible_devices(settings.cuda_visible_devices)):
        return {}
    servers: dict[str, ForkServer] = {}
    for each in warm:
        modules = each.modules(embedded_by_server=embedder_of(settings) == "server")
        server = ForkServer(modules, threads=settings.threads, idle_seconds=settings.warm_seconds)
        servers |= dict.fromkeys(each.steps, server)
    return servers


def devices_of(settings: Settings) -> list[Device]:
    """The GPUs of this worker: those that the settings name, else all that it sees, if it has work for them.

    Raises:
        InvalidInput: one that they name does not exist.
    """
    if settings.device == NONE:
        return []
    if settings.device:
        return choose_devices(settings.device, setting="LATHE_DEVICE")
    if not any(settings.concurrency[queue] for queue in DEVICE_QUEUES):
        return []
    return visible_devices(settings.cuda_visible_devices)


def _row_of(device: Device, settings: Settings) -> models.Device:
    return models.Device(
        id=device.id,
        host=socket.gethostname(),
        index=device.index,
        name=device.name,
        memory_bytes=device.memory_bytes,
        serves=settings.chat_backend if serves_from(settings, device) else None,
        shares=settings.share_device,
    )


def _join(factory: SessionFactory, settings: Settings, devices: list[Device]) -> None:
    """Tie the storage root and the devices to the database."""
    with transaction(factory) as session:
        claim_storage_root(session, settings.storage_root)
        for device in sorted(devices, key=lambda each: each.id):
            register_device(session, _row_of(device, settings))


def _when_database_answers(work: Callable[[], object]) -> None:
    """Do `work`, again and again while the database is away: it may be starting too."""
    while True:
        with unless_away():
            work()
            return
        time.sleep(DATABASE_WAIT_SECONDS)


def _exit_now() -> None:
    log.error("worker_stop_forced")
    os._exit(1)


def _work(runner: Runner) -> int:
    def stop(**_: Any) -> None:
        runner.stopping.set()
        # Celery may hang in its broker's client. Our children end with us in any case.
        forced = threading.Timer(STOP_WITHIN_SECONDS, _exit_now)
        forced.daemon = True
        forced.start()

    def listen(sender: Any, **_: Any) -> None:
        runner.monitor.begin(sender)
        runner.listening.set()

    def keep_our_logs(**_: Any) -> None:
        """Celery configures logs only where nobody is connected to this signal."""

    # Celery warns root of pickled messages; we take JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.worker_shutting_down.connect(stop, weak=False)
    signals.worker_ready.connect(listen, weak=False)
    signals.setup_logging.connect(keep_our_logs, weak=False)
    app.steps["worker"].add(SweepStep)
    listen_for_revokes(runner.factory)
    worker = app.Worker(
        hostname=runner.name,
        queues=runner.queues,
        without_gossip=True,
        without_mingle=True,
        optimization="fair",
        quiet=True,
    )
    log.info("worker_starting", worker=runner.name, queues=runner.queues)
    worker.start()
    # Celery waits for what it rang for; what runs without a ring is handed back too.
    runner.stopping.set()
    while not runner.idle:
        time.sleep(0.05)
    log.info("worker_stopped", worker=runner.name)
    return int(worker.exitcode or 0)
