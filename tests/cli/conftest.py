"""The command line against the real API, and a hand that does in SQL what workers do."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from structlog.testing import capture_logs

from api.app import create_app
from cli import app as cli_app
from db.models import DEFAULT_PROJECT, Artifact, Attempt, File, Job, Step
from db.queries.jobs import add_event, create_job, end_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobKind, JobStatus, StepStatus
from db.storage import attempt_folder, attempt_log
from tests.rows import add_version


@dataclass(frozen=True)
class Ran:
    """What a run of `lathe` came to."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def api_url(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API on a port of its own, which the settings of the command line name."""
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), port=0, log_config=None, log_level="warning")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the API did not start"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    monkeypatch.setenv("LATHE_API_URL", url)
    with capture_logs():  # which would stand on the stdout that is tested
        yield url
    server.should_exit = True
    thread.join()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `lathe` in this process, on a wide screen that is no terminal."""
    monkeypatch.setenv("COLUMNS", "160")

    def run_lathe(*argv: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["lathe", *argv])
        capsys.readouterr()
        try:
            cli_app.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run_lathe


@dataclass
class Hand:
    """Does to the rows what workers do to them."""

    settings: Settings
    sessions: SessionFactory

    def fine_tune(self, name: str = "faq", waits_for: str | None = None) -> str:
        params = {"base_model": "tiny", "training_file": "file-0", "name": name, "quantizations": ["Q4_K_M"]}
        return self._submit(JobKind.FINE_TUNE, params, waits_for)

    def pretrain(self, name: str = "tiny") -> str:
        return self._submit(JobKind.PRETRAIN, {"name": name}, None)

    def _submit(self, kind: JobKind, params: dict[str, Any], waits_for: str | None) -> str:
        with transaction(self.sessions) as session:
            job = create_job(
                session,
                project_id=DEFAULT_PROJECT,
                kind=kind,
                params=params,
                max_attempts=3,
                waits_for_job_id=waits_for,
            )
            return str(job.id)

    def begin(self, job_id: str, step: str) -> None:
        with transaction(self.sessions) as session:
            job, row = self._rows(session, job_id, step)
            if job.status == JobStatus.QUEUED:
                move(session, job, JobStatus.RUNNING)
            if row.status == StepStatus.PENDING:
                move(session, row, StepStatus.QUEUED)
            row.attempt += 1
            row.started_at = job.started_at
            move(session, row, StepStatus.RUNNING)
            attempt = Attempt(step_id=row.id, number=row.attempt, worker="w", host="h")
            attempt.project_id, attempt.queue = job.project_id, row.queue
            session.add(attempt)

    def say(self, job_id: str, step: str, message: str = "", /, **data: Any) -> None:
        """An event; without a message, measured values."""
        with transaction(self.sessions) as session:
            kind = "message" if message else "metrics"
            add_event(session, job_id, message, type=kind, step=step, attempt=1, data=data)

    def warn(self, job_id: str, step: str, message: str) -> None:
        with transaction(self.sessions) as session:
            add_event(session, job_id, message, type="message", level="warn", step=step, attempt=1)

    def progress(self, job_id: str, step: str, done: int, total: int, eta_seconds: float) -> None:
        with transaction(self.sessions) as session:
            _, row = self._rows(session, job_id, step)
            row.progress = {"done": done, "total": total, "eta_seconds": eta_seconds, "unit": "steps"}

    def finish(self, job_id: str, *steps: str) -> None:
        for step in steps:
            with transaction(self.sessions) as session:
                _, row = self._rows(session, job_id, step)
                if row.status != StepStatus.RUNNING:
                    session.rollback()
                    self.begin(job_id, step)
            with transaction(self.sessions) as session:
                _, row = self._rows(session, job_id, step)
                move(session, row, StepStatus.SUCCEEDED)

    def succeed(self, job_id: str, **result: Any) -> None:
        with transaction(self.sessions) as session:
            end_job(session, self._job(session, job_id), JobStatus.SUCCEEDED, result=result)

    def fail(self, job_id: str, step: str, message: str, log: str = "") -> None:
        path = attempt_log(self.settings.storage_root, job_id, step, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(log)
        with transaction(self.sessions) as session:
            job, row = self._rows(session, job_id, step)
            move(session, row, StepStatus.FAILED)
            error = {"code": "step_failed", "message": message, "param": None}
            end_job(session, job, JobStatus.FAILED, error=error)

    def artifact(self, job_id: str, name: str, content: bytes) -> None:
        folder = attempt_folder(self.settings.storage_root, job_id, "export", 1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        with transaction(self.sessions) as session:
            session.add(
                Artifact(
                    job_id=job_id,
                    step="export",
                    attempt=1,
                    name=name,
                    path=str((folder / name).relative_to(self.settings.storage_root)),
                    bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                )
            )

    def publish(self, name: str, *quantizations: str, base: str = "tiny") -> None:
        with transaction(self.sessions) as session:
            figures = {"bytes": 3_141_592, "verification": {"top1_agreement": 0.9931, "kl": 0.0042}}
            files = ({"quantization": each, **figures} for each in quantizations)
            add_version(session, name, *files, base_model=base)

    def upload_of(self, file_id: str) -> bytes:
        """The bytes that the API stored."""
        with self.sessions() as session:
            row = session.get_one(File, file_id)
            return (self.settings.storage_root / row.path).read_bytes()

    def job(self, job_id: str) -> Job:
        with self.sessions() as session:
            return session.get_one(Job, job_id)

    def jobs(self) -> list[Job]:
        with self.sessions() as session:
            return list(session.query(Job).order_by(Job.id))

    def _job(self, session: Any, job_id: str) -> Job:
        job: Job = session.get(Job, job_id, with_for_update=True)
        return job

    def _rows(self, session: Any, job_id: str, step: str) -> tuple[Job, Step]:
        job = self._job(session, job_id)
        return job, next(row for row in job.steps if row.name == step)


@pytest.fixture
def hand(settings: Settings, session_factory: SessionFactory) -> Hand:
    return Hand(settings, session_factory)
