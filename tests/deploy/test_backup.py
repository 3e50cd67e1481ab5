"""A backup of a data folder with a real database in it, restored into another one."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, func, text

import migrations
from db.errors import Conflict, InvalidInput, NotFound
from db.models import Artifact, Attempt, Event, Job, Step
from db.queries.states import move
from db.session import make_engine, make_session_factory, transaction
from db.settings import Settings
from db.states import JobKind, JobStatus, StepStatus
from db.storage import claim_storage_root
from deploy.local import postgres
from deploy.local.backup import back_up, copy_tree, link_tree
from deploy.local.database import reach
from deploy.local.passwords import password
from deploy.local.restore import restore_from
from tests.rows import add_file, add_job

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A data folder whose stack is down: a job with an artifact that is served, and one under way."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("filled") / "data")
    secret = password(settings.data_dir / "secrets", "postgres")
    postgres.initialise(settings.data_dir / "postgres", secret)
    root = settings.storage_root
    with reach(settings) as url:
        migrations.upgrade(url)
        engine = make_engine(url)
        with transaction(make_session_factory(engine)) as session:
            claim_storage_root(session, root)
            job = add_job(session, kind=JobKind.FINE_TUNE, params={"name": "faq"})
            artifact = f"jobs/{job.id}/export/1/faq.gguf"
            session.add(
                Artifact(
                    job_id=job.id, step="export", attempt=1, name="faq", path=artifact, bytes=9, sha256="0"
                )
            )
            add_file(session, "a.csv", purpose="fine-tune", path="files/file-gone")
        engine.dispose()
    write(root / artifact, "the model")
    write(root / artifact.replace("faq.gguf", "manifest.json"), "{}")
    (root / "served").mkdir()
    (root / "served" / "faq-v-1.gguf").hardlink_to(root / artifact)
    write(root / f"jobs/{job.id}/train/1/half-written.bin", "ha")
    write(root / f"jobs/{job.id}/train/1/checkpoints/checkpoint-5/adapter", "whole")
    write(root / f"jobs/{job.id}/train/1/checkpoints/.writing/checkpoint-6/adapter", "ha")
    write(root / f"jobs/{job.id}/train/1.log", "printed")
    write(root / "trash/trash-1/old", "old")
    write(root / "prepared/default/entry/rows.jsonl", "rows")
    return settings


def claimed(engine: Engine, status: JobStatus = JobStatus.RUNNING) -> str:
    """A job whose first step runs; its last attempt but for what is released."""
    with transaction(make_session_factory(engine)) as session:
        job = add_job(session, kind=JobKind.FINE_TUNE, params={"name": "x"}, max_attempts=1)
        step = job.steps[0]
        move(session, job, JobStatus.RUNNING)
        move(session, step, StepStatus.RUNNING)
        step.attempt, step.lease_expires_at = 1, func.clock_timestamp()
        attempt = Attempt(step_id=step.id, number=1, worker="w", host="h", project_id="default")
        attempt.queue = step.queue
        session.add(attempt)
        if status != JobStatus.RUNNING:
            move(session, job, status)
        return job.id


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture(scope="module")
def archive(filled: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backup") / "lathe.tar.gz"
    made = back_up(filled, path)
    assert (made.jobs, made.models) == (1, 0)
    assert made.missing == ["files/file-gone"]
    return path


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Settings]:
    yield Settings(data_dir=tmp_path / "restored")
    assert not list(tmp_path.glob(".restored-*"))


def paths(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


class TestRestore:
    def test_brings_rows_files_and_passwords_back(
        self, filled: Settings, archive: Path, empty: Settings
    ) -> None:
        restore_from(empty, archive)
        assert set(empty.data_dir.iterdir()) == {
            empty.data_dir / name for name in ("postgres", "secrets", "storage")
        }
        secret = Path("secrets") / "postgres"
        assert (empty.data_dir / secret).read_text() == (filled.data_dir / secret).read_text()
        assert (empty.data_dir / secret).stat().st_mode & 0o777 == 0o600
        assert (empty.data_dir / "secrets").stat().st_mode & 0o777 == 0o700
        with reach(empty) as url:
            engine = make_engine(url)
            with transaction(make_session_factory(engine)) as session:
                claim_storage_root(session, empty.storage_root)  # it is the same installation
                [job] = session.query(Job)
                [artifact] = session.query(Artifact)
                assert (empty.storage_root / artifact.path).read_text() == "the model"
                assert job.steps[0].name == "prepare"
            engine.dispose()
            migrations.upgrade(url)
        served = empty.storage_root / "served" / "faq-v-1.gguf"
        assert served.samefile(empty.storage_root / artifact.path)

    def test_hands_back_what_ran_without_counting_it(
        self, filled: Settings, empty: Settings, tmp_path: Path
    ) -> None:
        with reach(filled) as url:
            engine = make_engine(url)
            running = [claimed(engine), claimed(engine, JobStatus.PAUSING)]
            cancelling = claimed(engine, JobStatus.CANCELLING)
            engine.dispose()
        back_up(filled, tmp_path / "backup")
        with reach(filled) as url:
            engine = make_engine(url)
            with engine.begin() as connection:
                connection.execute(
                    text("DELETE FROM jobs WHERE id = ANY(:ids)"), {"ids": [*running, cancelling]}
                )
            engine.dispose()
        restore_from(empty, tmp_path / "backup")
        with reach(empty) as url:
            engine = make_engine(url)
            with transaction(make_session_factory(engine)) as session:
                for job_id, status in zip(running, ("running", "paused"), strict=True):
                    step = session.query(Step).filter_by(job_id=job_id, position=0).one()
                    attempt = session.query(Attempt).filter_by(step_id=step.id).one()
                    assert session.get_one(Job, job_id).status == status
                    assert (step.status, step.failures, step.lease_expires_at) == ("queued", 0, None)
                    assert (attempt.outcome, attempt.ended_at) == ("released", attempt.started_at)
                    [event] = session.query(Event).filter_by(job_id=job_id)
                    assert event.message.startswith("Step prepare was handed back")
                left = session.query(Step).filter_by(job_id=cancelling, position=0).one()
                assert left.status == "running"
            engine.dispose()

    def test_holds_what_is_whole_and_nothing_else(self, filled: Settings, archive: Path) -> None:
        with tarfile.open(archive) as opened:
            names = set(opened.getnames())
        inside = {name.partition("/train/")[2] for name in names}
        assert {"1.log", "1/checkpoints/checkpoint-5/adapter"} <= inside
        left_out = ("half-written", ".writing", "trash", "prepared")
        assert not [name for name in names if any(each in name for each in left_out)]

    def test_replaces_nothing(self, archive: Path, empty: Settings, filled: Settings) -> None:
        empty.data_dir.mkdir()
        (empty.data_dir / "mine").touch()
        with pytest.raises(InvalidInput, match="not empty"):
            restore_from(empty, archive)
        assert [path.name for path in empty.data_dir.iterdir()] == ["mine"]

    def test_leaves_nothing_of_a_broken_one(self, archive: Path, empty: Settings, tmp_path: Path) -> None:
        cut = tmp_path / "cut.tar.gz"
        cut.write_bytes(archive.read_bytes()[:-2000])
        other = tmp_path / "other.tar"
        with tarfile.open(other, "w") as opened:
            opened.add(__file__, "README")
        for broken, message in (
            (cut, "no whole backup"),
            (other, "no backup of Lathe"),
            (Path(__file__), "neither a folder nor"),
        ):
            with pytest.raises(InvalidInput, match=message):
                restore_from(empty, broken)
        with pytest.raises(NotFound):
            restore_from(empty, tmp_path / "nothing")
        assert not empty.data_dir.exists()

    def test_refuses_one_of_a_newer_lathe(self, filled: Settings, empty: Settings, tmp_path: Path) -> None:
        folder = tmp_path / "backup"
        back_up(filled, folder)
        manifest = json.loads((folder / "lathe-backup.json").read_text())
        (folder / "lathe-backup.json").write_text(json.dumps({**manifest, "revision": "9999"}))
        with pytest.raises(InvalidInput, match="newer"):
            restore_from(empty, folder)

    def test_fills_a_server_of_the_users_own(
        self, filled: Settings, empty: Settings, postgres_server: "PostgresServer", tmp_path: Path
    ) -> None:
        postgres_server.execute("CREATE DATABASE own_restore")
        url = postgres_server.url("own_restore")
        own = Settings(data_dir=empty.data_dir, database_url=url)
        back_up(filled, tmp_path / "backup")
        restore_from(own, tmp_path / "backup")
        assert not (own.data_dir / "postgres").exists()
        shutil.rmtree(own.data_dir)
        with pytest.raises(InvalidInput, match="DATABASE_URL"):
            restore_from(own, tmp_path / "backup")
        engine = create_engine(url)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM jobs")).scalar_one() == 1
        engine.dispose()
        postgres_server.execute("DROP DATABASE own_restore WITH (FORCE)")


class TestBackup:
    def test_is_for_its_owner_alone_and_leaves_nothing_beside(self, filled: Settings, archive: Path) -> None:
        assert archive.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in archive.parent.iterdir()] == [archive.name]
        assert not list(filled.data_dir.glob(".backup-*"))

    def test_goes_into_no_place_that_is_taken_or_inside(self, filled: Settings, archive: Path) -> None:
        with pytest.raises(InvalidInput, match="exists"):
            back_up(filled, archive)
        with pytest.raises(InvalidInput, match="inside"):
            back_up(filled, filled.storage_root / "backup")

    def test_that_cannot_be_written_leaves_nothing(self, filled: Settings, tmp_path: Path) -> None:
        """A limit on the size of files is as hard as a full disk, and needs no disk of one's own."""
        code = (
            "import resource, sys, pathlib, signal\n"
            "from db.errors import LatheError\n"
            "from db.settings import Settings\n"
            "from deploy.local.backup import back_up\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
            "import tarfile\n"
            "opened = tarfile.open\n"
            "def limited(*arguments):\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))\n"
            "    return opened(*arguments)\n"
            "tarfile.open = limited\n"
            "try:\n"
            "    back_up(Settings(data_dir=pathlib.Path(sys.argv[1])), pathlib.Path(sys.argv[2]))\n"
            "except LatheError as error:\n"
            "    print(error.message)\n"
        )
        target = tmp_path / "backup.tar"
        argv = [sys.executable, "-c", code, str(filled.data_dir), str(target)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
        assert f"{target} could not be written: File too large" in done.stdout, done.stderr
        assert list(tmp_path.iterdir()) == []
        assert not list(filled.data_dir.glob(".backup-*"))

    def test_waits_for_no_other_and_takes_nothing_from_it(self, filled: Settings, tmp_path: Path) -> None:
        other = filled.data_dir / ".backup-other"
        descriptor = os.open(filled.data_dir, os.O_RDONLY)
        other.mkdir()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(Conflict, match="Another backup"):
                back_up(filled, tmp_path / "backup")
            assert other.exists()
        finally:
            os.close(descriptor)
            other.rmdir()

    def test_begins_anew_where_one_was_killed(self, filled: Settings, tmp_path: Path) -> None:
        left = tmp_path / ".backup.partial" / "storage" / "served"
        left.mkdir(parents=True)
        (left / "faq-v-1.gguf").write_text("half")
        back_up(filled, tmp_path / "backup")
        assert (tmp_path / "backup" / "storage" / "served" / "faq-v-1.gguf").read_text() == "the model"
        assert [path.name for path in tmp_path.iterdir()] == ["backup"]

    def test_what_cannot_be_copied_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            copy_tree(tmp_path / "gone", tmp_path / "copy")

    def test_of_nothing_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="LATHE_DATA_DIR"):
            back_up(Settings(data_dir=tmp_path / "none"), tmp_path / "backup")
        assert not (tmp_path / "none").exists()

    def test_copies_what_cannot_be_linked(self, filled: Settings, tmp_path: Path) -> None:
        """A data folder with the storage on another file system."""
        with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
            place = filled.storage_root
            kept = place.rename(place.with_name("kept"))
            place.symlink_to(shutil.copytree(kept, Path(elsewhere) / "storage"))
            try:
                made = back_up(filled, tmp_path / "backup")
            finally:
                place.unlink()
                kept.rename(place)
        assert not made.linked
        backed_up = tmp_path / "backup" / "storage"
        assert (backed_up / "served" / "faq-v-1.gguf").read_text() == "the model"

    def test_keeps_what_is_removed_after_it_was_linked(self, tmp_path: Path) -> None:
        write(tmp_path / "root" / "files" / "one", "1")
        link_tree(tmp_path / "root", tmp_path / "staging")
        (tmp_path / "root" / "files" / "one").unlink()
        write(tmp_path / "root" / "files" / "two", "2")
        link_tree(tmp_path / "root", tmp_path / "staging")
        assert paths(tmp_path / "staging") == {"files/one", "files/two"}
