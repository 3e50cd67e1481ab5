"""Real worker processes with toy steps, on the test's own database and broker."""

import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from pydantic import SecretStr

from db.doorbell import Doorbell
from db.models import Job
from db.queries.jobs import create_job, get_job
from db.session import SessionFactory, make_engine, make_session_factory, transaction
from db.settings import STEP_MARKER, Settings
from db.states import ENDED_JOB, JobKind
from deploy.local import valkey
from serving.local_port import free_port
from tests.nursery import WORKERS, Child
from tests.rows import add_file
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.conftest import PostgresServer

TOYS = Path(__file__).parent / "toys"
REPOSITORY = Path(__file__).parents[2]


# Leases and sweeps of seconds, so that losses are noticed within a test's patience.
# Most workers run few steps here: a fork server would import what none of them waits for.
IMPATIENT = {
    "lease_seconds": 3.0, "heartbeat_seconds": 0.5, "sweep_seconds": 1.0, "cpu_concurrency": 2,
    "warm_seconds": 0.0,
}  # fmt: skip


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update=IMPATIENT)


def environment(settings: Settings) -> dict[str, str]:
    """Say `settings` to a process."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LATHE_")}
    own |= {
        f"LATHE_{name.upper()}": str(value)
        for name, value in settings
        if isinstance(value, (int, float, Path)) and not isinstance(value, bool)
    }
    own |= {
        "DATABASE_URL": settings.require_database_url(),
        "REDIS_URL": settings.require_redis_url(),
        "LATHE_WEBHOOK_ALLOWED_NETWORKS": ",".join(map(str, settings.webhook_allowed_networks)),
        "PYTHONPATH": f"{TOYS}{os.pathsep}{REPOSITORY}",
    }
    return own


class Bench:
    """Jobs, workers and processes of one test."""

    def __init__(self, settings: Settings, factory: SessionFactory, folder: Path) -> None:
        self.settings = settings
        self.factory = factory
        self.folder = folder
        self.ledger = folder / "ledger"
        self.workers: list[Child] = []
        self.doorbell = Doorbell(settings.require_redis_url())
        self.doorbell.listen(factory)

    def use_broker(self, redis_url: str) -> None:
        """Let workers that start from now on use another broker. Our own rings stay unheard."""
        self.settings = self.settings.model_copy(update={"redis_url": SecretStr(redis_url)})

    def start_worker(self, script: str = "serve_toys.py", **changes: str) -> Child:
        """Start a worker of these toys; `changes` are made to its environment."""
        return self.start([str(TOYS / script)], environment(self.settings) | changes)

    def start(self, argv: Sequence[str], own: dict[str, str]) -> Child:
        """Start a worker by its program, in an environment of its own."""
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = WORKERS.start(argv, env=own, log=log)
        self.workers.append(worker)
        return worker

    def submit(
        self, kind: JobKind = JobKind.PRETRAIN, *, do: dict[str, str] | None = None, **options: Any
    ) -> str:
        params = {"name": "m", "ledger": str(self.ledger), "do": do or {}, **options.pop("params", {})}
        with transaction(self.factory) as session:
            options = {"project_id": "default", "params": params, **options}
            return create_job(session, kind=kind, **options).id

    def add_training_file(self, content: str) -> None:
        """A CSV that was uploaded, as `file-1`."""
        path = self.settings.storage_root / "files" / "file-1"
        path.parent.mkdir(parents=True)
        path.write_text(content)
        with transaction(self.factory) as session:
            size = path.stat().st_size
            add_file(session, "rows.csv", id="file-1", purpose="fine-tune", bytes=size)

    def job(self, job_id: str) -> Job:
        with self.factory() as session:
            return get_job(session, job_id, project_id="default")

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 60) -> None:
        wait_until(condition, seconds=seconds, every=0.05, told=self.logs)

    def ended(self, job_id: str, *, seconds: float = 60) -> Job:
        self.wait_for(lambda: self.job(job_id).status in ENDED_JOB, seconds=seconds)
        return self.job(job_id)

    def notes(self) -> list[list[str]]:
        """What the steps wrote: job, step, attempt, what, pid."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [line.split() for line in lines]

    def began(self, job_id: str, step: str = "train", attempt: int = 1) -> bool:
        return [job_id, step, str(attempt), "began"] in [note[:4] for note in self.notes()]

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))

    def close(self) -> None:
        self.doorbell.close()
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.terminate()
        for worker in self.workers:
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
                raise


Processes = Callable[[str], list[psutil.Process]]


def processes_of(job_id: str) -> list[psutil.Process]:
    """Every process of a job's steps that lives, by the marker in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(STEP_MARKER, "").startswith(job_id):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.fixture
def bench(settings: Settings, session_factory: SessionFactory, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(settings, session_factory, tmp_path)
    yield bench
    bench.close()


class OwnValkey:
    """A broker of the test's own, to be stopped and started, frozen and thawed."""

    def __init__(self, folder: Path, port: int) -> None:
        self._configuration = valkey.write_configuration(folder, port, "password")
        self.url = valkey.redis_url(port, "password")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = valkey.server_argv(self._configuration)
        self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            self._process.wait(15)
            self._process = None


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[OwnValkey]:
    server = OwnValkey(tmp_path / "valkey", free_port())
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def idle_bench(
    postgres_server: "PostgresServer",
    migrated_template: str,
    valkey_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Bench]:
    """A bench for all tests of a module, still without a worker."""
    name = f"standing_{secrets.token_hex(6)}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY file_copy")
    folder = tmp_path_factory.mktemp("standing")
    settings = Settings(
        database_url=SecretStr(postgres_server.url(name)),
        # Another of the server's databases: rings are not to be heard by the workers of other tests.
        redis_url=SecretStr(valkey_url.removesuffix("/0") + "/1"),
        data_dir=folder / "data",
    ).model_copy(update=IMPATIENT | {"lease_seconds": 10.0})
    engine = make_engine(settings.require_database_url())
    bench = Bench(settings, make_session_factory(engine), folder)
    yield bench
    bench.close()
    engine.dispose()
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def standing(idle_bench: Bench) -> Bench:
    """One with a worker, for tests that leave it as it was."""
    idle_bench.settings = idle_bench.settings.model_copy(update={"warm_seconds": 60.0})
    idle_bench.start_worker()
    return idle_bench


@pytest.fixture
def processes() -> Processes:
    return processes_of
