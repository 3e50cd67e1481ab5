"""An installation with jobs that ended when a test says so."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db.ids import new_id
from db.models import Artifact, Checkpoint, Job
from db.queries.jobs import add_event
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobKind
from db.storage import attempt_folder, job_folder
from retention import Expired, House, Removal, Rule
from tests.rows import add_file, add_job, add_version

# As a trigger guards moves, and times are the database's: history is written past both.
PAST = "SET LOCAL session_replication_role = replica"
END = (
    "UPDATE jobs SET status = :status, finished_at = now() - make_interval(days => :days), "
    "created_at = now() - make_interval(days => :days) WHERE id = :id"
)


@dataclass
class Installation:
    settings: Settings
    sessions: SessionFactory

    @property
    def root(self) -> Path:
        return self.settings.storage_root

    def house(self, *, leavings_seconds: float = 0, **settings: Any) -> House:
        return House(self.settings.model_copy(update=settings), leavings_seconds)

    def ended_job(self, days: int, *, status: str = "succeeded", kind: JobKind = JobKind.FINE_TUNE) -> str:
        """A job with a row and a file of everything that a job can have."""
        with transaction(self.sessions) as session:
            job = add_job(session, kind=kind)
            for name in ("train", "export"):
                folder = attempt_folder(self.root, job.id, name, 1)
                (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
                (folder / "merged").mkdir()
                for path in ("result.bin", "full.gguf", "merged/w", "checkpoints/checkpoint-5/w"):
                    (folder / path).write_bytes(b"x" * 100)
                folder.with_name("1.log").write_text("printed")
            path = f"jobs/{job.id}/export/1/result.bin"
            session.add(
                Artifact(job_id=job.id, step="export", attempt=1, name="r", path=path, bytes=100, sha256="0")
            )
            session.add(
                Checkpoint(
                    id=new_id("checkpoint"), job_id=job.id, attempt=1, step_number=5, metrics={},
                    path=f"jobs/{job.id}/train/1/checkpoints/checkpoint-5",
                )
            )  # fmt: skip
            add_event(session, job.id, "It went well.")
            add_event(session, job.id, "", type="metrics", data={"loss": 1.0})
            session.flush()
            session.execute(text(PAST))
            session.execute(text("UPDATE steps SET succeeded_attempt = 1 WHERE job_id = :id"), {"id": job.id})
            session.execute(text(END), {"id": job.id, "days": days, "status": status})
            return job.id

    def publish(self, job_id: str, *, weights: str | None = None, backend_name: str = "m-v-1") -> str:
        with transaction(self.sessions) as session:
            name = new_id("m")
            file = {"quantization": "Q8_0", "backend_name": backend_name}
            add_version(session, name, file, job_id=job_id, weights=weights)
            return name

    def upload(self, days: int) -> str:
        file_id = new_id("file")
        path = self.root / "files" / file_id
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
        with transaction(self.sessions) as session:
            add_file(session, "faq.csv", id=file_id, purpose="fine-tune", bytes=10, sha256="0")
            aged = "UPDATE files SET created_at = now() - make_interval(days => :days) WHERE id = :id"
            session.execute(text(aged), {"days": days, "id": file_id})
        return file_id

    def find(self, rule: Rule, house: House) -> list[Expired]:
        with self.sessions() as session:
            return rule.find(session, house, None, 100).items

    def apply(self, rule: Rule, house: House) -> list[str]:
        """Remove all that a rule finds; gives the ids of what went."""
        gone = []
        for item in self.find(rule, house):
            with transaction(self.sessions) as session:
                if rule.remove(session, house, item) == Removal.DONE:
                    gone.append(item.id)
        return gone

    def job(self, job_id: str) -> Job | None:
        with self.sessions() as session:
            return session.get(Job, job_id)

    def count(self, table: type[Any], job_id: str) -> int:
        with self.sessions() as session:
            return session.query(table).filter_by(job_id=job_id).count()

    def folder(self, job_id: str) -> Path:
        return job_folder(self.root, job_id)


@pytest.fixture
def installation(settings: Settings, session_factory: SessionFactory, tmp_path: Path) -> Installation:
    return Installation(settings.model_copy(update={"cache_dir": tmp_path / "cache"}), session_factory)


Rules = Callable[[str], Rule]
