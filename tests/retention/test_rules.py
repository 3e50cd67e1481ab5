"""What each rule finds and removes, and what it must leave."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, text

from db.ids import new_id
from db.models import Artifact, AuditEntry, Checkpoint, DeliveryTry, Event, File, WebhookDelivery
from db.queries.collections import create_collection
from db.queries.documents import add_documents
from db.queries.jobs import get_job
from db.session import transaction
from db.source_files import ENTRY_FILE
from db.states import JobKind
from db.storage import trash_folder
from retention import RULES, Removal, Rule, records
from serving.served_adapters import base_files_folder
from tests.retention.conftest import PAST, Installation
from tests.rows import add_job

BY_KIND: dict[str, Rule] = {rule.kind: rule for rule in RULES}
SETTINGS = {
    "job": "keep_jobs_days",
    "artifacts": "keep_artifacts_days",
    "checkpoints": "keep_checkpoints_days",
    "events": "keep_events_days",
    "metrics": "keep_metrics_days",
}


class TestDefaults:
    def test_nothing_that_a_user_made_is_found(self, installation: Installation) -> None:
        installation.ended_job(5000)
        installation.ended_job(5000, status="failed")
        installation.upload(5000)
        house = installation.house()
        found = {kind: installation.find(rule, house) for kind, rule in BY_KIND.items()}
        assert {kind for kind, items in found.items() if items} == {"working files"}


class TestAge:
    @pytest.mark.parametrize("kind", SETTINGS)
    def test_takes_what_is_older_and_leaves_what_is_younger(
        self, installation: Installation, kind: str
    ) -> None:
        old, young = installation.ended_job(31), installation.ended_job(29)
        with transaction(installation.sessions) as session:
            running = add_job(session)
        rule, house = BY_KIND[kind], installation.house(**{SETTINGS[kind]: 30.0})
        [item] = installation.find(rule, house)
        assert (item.kind, item.id) == (kind, old)
        assert item.rows > 0
        assert "30 days" in item.why
        assert installation.apply(rule, house) == [old]
        assert installation.apply(rule, house) == []
        assert installation.job(young) is not None
        assert installation.job(running.id) is not None
        for table in (Artifact, Checkpoint, Event):
            assert installation.count(table, young) > 0

    def test_a_batch_goes_on_where_the_last_one_ended(self, installation: Installation) -> None:
        jobs = [installation.ended_job(days) for days in (60, 50, 40, 31)]
        rule, house = BY_KIND["events"], installation.house(keep_events_days=30.0)
        seen, cursor = [], None
        with installation.sessions() as session:
            for more in (True, True, False):
                batch = rule.find(session, house, cursor, 2)
                seen += [item.id for item in batch.items]
                cursor = batch.cursor
                assert batch.more == more
            assert rule.find(session, house, cursor, 2).items == []
        assert seen == jobs

    def test_looks_again_before_it_removes(self, installation: Installation) -> None:
        """The job was tried again meanwhile, or somebody has just locked it."""
        job_id = installation.ended_job(31, status="failed")
        rule, house = BY_KIND["job"], installation.house(keep_jobs_days=30.0)
        [item] = installation.find(rule, house)
        with transaction(installation.sessions) as other, transaction(installation.sessions) as session:
            get_job(other, job_id, project_id="default", lock=True)
            assert rule.remove(session, house, item) == Removal.KEPT
        with transaction(installation.sessions) as session:
            session.execute(text(PAST))
            session.execute(text("UPDATE jobs SET status = 'queued', finished_at = NULL"))
        with transaction(installation.sessions) as session:
            assert rule.remove(session, house, item) == Removal.KEPT
        assert installation.job(job_id) is not None


class TestJobs:
    def test_go_with_all_rows_and_their_folder(self, installation: Installation) -> None:
        job_id = installation.ended_job(31)
        name = installation.publish(job_id)
        house = installation.house(keep_jobs_days=30.0)
        assert installation.apply(BY_KIND["job"], house) == [job_id]
        assert installation.job(job_id) is None
        assert all(installation.count(table, job_id) == 0 for table in (Artifact, Checkpoint, Event))
        assert not installation.folder(job_id).exists()
        with installation.sessions() as session:
            row = session.execute(
                text(
                    "SELECT job_id FROM model_versions JOIN models ON models.id = model_id "
                    "WHERE models.name = :name"
                ),
                {"name": name},
            ).one()
        assert row.job_id is None

    def test_with_the_weights_of_a_model_stay(self, installation: Installation) -> None:
        job_id = installation.ended_job(31, kind=JobKind.PRETRAIN)
        installation.publish(job_id, weights=f"jobs/{job_id}/train/1/model")
        house = installation.house(keep_jobs_days=30.0)
        assert installation.find(BY_KIND["job"], house) == []


class TestParts:
    def test_artifacts_go_and_the_events_say_so(self, installation: Installation) -> None:
        job_id = installation.ended_job(31)
        house = installation.house(keep_artifacts_days=30.0)
        installation.apply(BY_KIND["artifacts"], house)
        assert not (installation.folder(job_id) / "export" / "1" / "result.bin").exists()
        assert (installation.folder(job_id) / "train" / "1" / "checkpoints" / "checkpoint-5").is_dir()
        with installation.sessions() as session:
            last = session.query(Event).filter_by(job_id=job_id).order_by(Event.id.desc()).first()
        assert last is not None
        assert last.message == "Its artifacts were removed: they are kept for 30 days."

    def test_artifacts_of_a_job_that_may_be_tried_again_stay(self, installation: Installation) -> None:
        installation.ended_job(31, status="failed")
        installation.ended_job(31, status="cancelled")
        house = installation.house(keep_artifacts_days=30.0)
        assert installation.find(BY_KIND["artifacts"], house) == []
        assert installation.find(BY_KIND["working files"], house) == []

    def test_checkpoints_of_a_failed_job_go_and_say_what_a_retry_does(
        self, installation: Installation
    ) -> None:
        job_id = installation.ended_job(31, status="failed")
        house = installation.house(keep_checkpoints_days=30.0)
        installation.apply(BY_KIND["checkpoints"], house)
        assert not (installation.folder(job_id) / "train" / "1" / "checkpoints" / "checkpoint-5").exists()
        with installation.sessions() as session:
            messages = [event.message for event in session.query(Event).filter_by(job_id=job_id)]
        assert "A retry trains from the beginning" in messages[-1]

    def test_events_go_without_metrics_and_with_the_logs(self, installation: Installation) -> None:
        job_id = installation.ended_job(31)
        house = installation.house(keep_events_days=30.0)
        installation.apply(BY_KIND["events"], house)
        with installation.sessions() as session:
            rows = list(session.query(Event).filter_by(job_id=job_id).order_by(Event.id))
        assert [row.type for row in rows] == ["metrics", "message"]
        assert rows[1].data == {"retention": "events"}
        assert not list(installation.folder(job_id).glob("*/*.log"))

    def test_a_long_history_goes_in_several_transactions(
        self, installation: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id = installation.ended_job(31)
        monkeypatch.setattr(records, "ROWS_AT_ONCE", 40)
        with transaction(installation.sessions) as session:
            some = "INSERT INTO events (job_id, type, level, message) SELECT :id, 'message', 'info', n FROM "
            session.execute(text(some + "generate_series(1, 99) AS n"), {"id": job_id})
        rule, house = BY_KIND["events"], installation.house(keep_events_days=30.0)
        [item] = installation.find(rule, house)
        removals = []
        while Removal.DONE not in removals:
            with transaction(installation.sessions) as session:
                removals.append(rule.remove(session, house, item))
        assert removals == [Removal.MORE, Removal.MORE, Removal.DONE]

    def test_working_files_go_a_day_after_success(self, installation: Installation) -> None:
        job_id = installation.ended_job(2)
        young = installation.ended_job(0)
        assert installation.apply(BY_KIND["working files"], installation.house()) == [job_id]
        left = {path.name for path in (installation.folder(job_id) / "export" / "1").iterdir()}
        assert left == {"result.bin", "checkpoints"}
        assert (installation.folder(young) / "export" / "1" / "merged").is_dir()


class TestDeliveries:
    def test_finished_ones_go_after_thirty_days_with_their_tries(self, installation: Installation) -> None:
        job_id = installation.ended_job(1)
        with transaction(installation.sessions) as session:
            for days, status in ((31, "succeeded"), (29, "failed"), (400, "pending")):
                ended = None if status == "pending" else func.now() - timedelta(days=days)
                row = WebhookDelivery(
                    id=new_id("delivery"), project_id="default", url="https://x.example", receiver="x",
                    job_id=job_id, event_id="e", event_type="job.succeeded", body="{}", status=status,
                    give_up_at=func.now(), finished_at=ended,
                )  # fmt: skip
                session.add(row)
                session.flush()
                session.add(DeliveryTry(delivery_id=row.id, number=1))
        rule, house = BY_KIND["webhook deliveries"], installation.house()
        [item] = installation.find(rule, house)
        assert item.rows == 1
        installation.apply(rule, house)
        with installation.sessions() as session:
            assert {row.status for row in session.query(WebhookDelivery)} == {"failed", "pending"}
            assert session.query(DeliveryTry).count() == 2


class TestAuditLog:
    def test_entries_go_after_as_many_days_as_set(self, installation: Installation) -> None:
        columns = {"method": "POST", "path": "/v1/jobs", "status": 202, "request_id": "r", "times": 1}
        with transaction(installation.sessions) as session:
            for days in (11, 9):
                moment = datetime.now(UTC) - timedelta(days=days)
                session.add(AuditEntry(action=f"{days} days ago", created_at=moment, **columns))
        rule = BY_KIND["audit entries"]
        assert installation.apply(rule, installation.house()) == []
        installation.apply(rule, installation.house(keep_audit_days=10.0))
        with installation.sessions() as session:
            assert [entry.action for entry in session.query(AuditEntry)] == ["9 days ago"]


class TestFiles:
    def test_only_those_that_no_job_names(self, installation: Installation) -> None:
        unused, named, young = installation.upload(31), installation.upload(31), installation.upload(29)
        with transaction(installation.sessions) as session:
            params = {"name": "m", "training_file": named}
            add_job(session, params=params)
        rule, house = BY_KIND["file"], installation.house(keep_unused_files_days=30.0)
        assert installation.apply(rule, house) == [unused]
        with installation.sessions() as session:
            assert {file.id for file in session.query(File)} == {named, young}
        assert not (installation.root / "files" / unused).exists()

    def test_not_those_of_a_collection(self, installation: Installation) -> None:
        held = installation.upload(31)
        with transaction(installation.sessions) as session:
            collection = create_collection(session, project_id="default", name="c")
            add_documents(
                session,
                collection,
                [session.get_one(File, held)],
                attributes=[{}],
                chunking=[{"max_tokens": 64, "overlap_tokens": 0}],
                passwords=[None],
            )
        rule, house = BY_KIND["file"], installation.house(keep_unused_files_days=30.0)
        assert installation.apply(rule, house) == []

    def test_one_that_a_submit_has_just_taken_stays(self, installation: Installation) -> None:
        file_id = installation.upload(31)
        rule, house = BY_KIND["file"], installation.house(keep_unused_files_days=30.0)
        [item] = installation.find(rule, house)
        with transaction(installation.sessions) as submit, transaction(installation.sessions) as session:
            submit.get(File, file_id, with_for_update={"read": True})
            assert rule.remove(session, house, item) == Removal.KEPT
        assert (installation.root / "files" / file_id).exists()


class TestLeavings:
    def test_folders_and_uploads_without_a_row_go(self, installation: Installation) -> None:
        kept, file_id = installation.ended_job(0), installation.upload(0)
        (installation.root / "jobs" / "job-gone" / "train").mkdir(parents=True)
        for name in ("file-gone", ".file-gone.part"):
            (installation.root / "files" / name).write_bytes(b"x" * 7)
        house = installation.house()
        assert installation.find(BY_KIND["folder"], installation.house(leavings_seconds=60)) == []
        assert installation.apply(BY_KIND["folder"], house) == ["jobs/job-gone"]
        [one, other] = installation.find(BY_KIND["upload"], house)
        assert one.bytes == other.bytes == 7
        installation.apply(BY_KIND["upload"], house)
        assert [path.name for path in (installation.root / "files").iterdir()] == [file_id]
        assert installation.folder(kept).is_dir()

    def test_a_served_file_goes_with_its_model_only(self, installation: Installation) -> None:
        installation.publish(installation.ended_job(0), backend_name="kept-v-1")
        folder = installation.settings.served_models_dir
        folder.mkdir(parents=True)
        staged = ".gone-v-1." + "0" * 32
        for name in ("kept-v-1.gguf", "gone-v-1.gguf", staged, "README"):
            (folder / name).write_bytes(b"x")
        house = installation.house()
        assert installation.apply(BY_KIND["served file"], house) == ["served/gone-v-1.gguf"]
        assert installation.apply(BY_KIND["unfinished file"], house) == [f"served/{staged}"]
        assert {path.name for path in folder.iterdir()} == {"kept-v-1.gguf", "README"}

    def test_a_model_that_was_published_meanwhile_stays(self, installation: Installation) -> None:
        folder = installation.settings.served_models_dir
        folder.mkdir(parents=True)
        (folder / "m-v-1.gguf").write_bytes(b"x")
        rule, house = BY_KIND["served file"], installation.house()
        [item] = installation.find(rule, house)
        installation.publish(installation.ended_job(0))
        with transaction(installation.sessions) as session:
            assert rule.remove(session, house, item) == Removal.KEPT
        assert (folder / "m-v-1.gguf").exists()

    def test_the_trash_is_emptied(self, installation: Installation) -> None:
        installation.ended_job(31)
        installation.apply(BY_KIND["checkpoints"], installation.house(keep_checkpoints_days=30.0))
        trash = trash_folder(installation.root)
        assert len(list(trash.iterdir())) == 1
        installation.apply(BY_KIND["trash"], installation.house(leavings_seconds=1e9))
        assert list(trash.iterdir()) == []

    def test_a_file_that_is_linked_elsewhere_frees_nothing(self, installation: Installation) -> None:
        folder = installation.root / "jobs" / "job-gone"
        folder.mkdir(parents=True)
        (folder / "linked").write_bytes(b"x" * 50)
        (installation.root / "elsewhere").hardlink_to(folder / "linked")
        (folder / "alone").write_bytes(b"x" * 3)
        assert [item.bytes for item in installation.find(BY_KIND["folder"], installation.house())] == [3]


class TestPreparedRows:
    def test_go_when_not_taken_for_long_or_too_many_or_without_their_files(
        self, installation: Installation
    ) -> None:
        rule, root = BY_KIND["prepared rows"], installation.root / "prepared" / "default"
        installation.upload(0)  # whose sha256 is "0"
        for name, files, days in (("old", "0", 31), ("late", "0", 3), ("new", "0", 1), ("gone", "1", 0)):
            (root / name).mkdir(parents=True)
            (root / name / "rows.jsonl").write_bytes(b"x" * 1000)
            (root / name / ENTRY_FILE).write_text(json.dumps({"result": {"files": [files]}}))
            taken = time.time() - days * 24 * 3600
            os.utime(root / name, (taken, taken))
        (root / (".new." + "0" * 32)).mkdir()
        why = {item.id: item.why for item in installation.find(rule, installation.house())}
        assert why == {
            "prepared/default/old": "not taken for 30 days",
            "prepared/default/gone": "a file that they were made of is gone",
        }
        assert list(why) == installation.apply(rule, installation.house())
        assert {path.name for path in root.iterdir()} == {"late", "new", ".new." + "0" * 32}
        house = installation.house(prepared_max_bytes=1500)
        assert installation.apply(rule, house) == ["prepared/default/late"]
        assert installation.apply(rule, house) == []

    def test_of_another_project_are_held_by_its_own_files_alone(self, installation: Installation) -> None:
        entry = installation.root / "prepared" / "others" / "entry"
        entry.mkdir(parents=True)
        (entry / ENTRY_FILE).write_text(json.dumps({"result": {"files": ["0"]}}))
        installation.upload(0)
        assert installation.apply(BY_KIND["prepared rows"], installation.house()) == ["prepared/others/entry"]

    def test_what_was_taken_meanwhile_stays(self, installation: Installation) -> None:
        rule, entry = BY_KIND["prepared rows"], installation.root / "prepared" / "default" / "entry"
        entry.mkdir(parents=True)
        (entry / ENTRY_FILE).write_text(json.dumps({"result": {"files": ["0"]}}))
        installation.upload(0)
        os.utime(entry, (0, 0))
        [item] = installation.find(rule, installation.house())
        os.utime(entry)
        with transaction(installation.sessions) as session:
            assert rule.remove(session, installation.house(), item) == Removal.KEPT
        assert entry.is_dir()

    def test_what_was_being_written_goes_with_other_unfinished_files(
        self, installation: Installation
    ) -> None:
        staged = installation.root / "prepared" / "default" / (".entry." + "0" * 32)
        staged.mkdir(parents=True)
        assert installation.apply(BY_KIND["unfinished file"], installation.house()) == [
            str(staged.relative_to(installation.root))
        ]


class TestBaseFiles:
    RULE = BY_KIND["base's files"]

    def base(self, installation: Installation, name: str, days: float) -> Path:
        folder = base_files_folder(installation.settings.cache_dir) / name
        folder.mkdir(parents=True)
        (folder / "Q4_K_M.gguf").write_bytes(b"x" * 1000)
        asked = time.time() - days * 24 * 3600
        os.utime(folder, (asked, asked))
        return folder

    def test_go_when_not_asked_for_for_long_or_too_many(self, installation: Installation) -> None:
        old, late, new = (
            self.base(installation, name, days) for name, days in (("old", 31), ("late", 3), ("new", 0.5))
        )
        day = 24 * 3600
        house = installation.house(leavings_seconds=day)
        [item] = installation.find(self.RULE, house)
        assert (item.id, item.why, item.bytes) == (str(old), "not asked for for 30 days", 1000)
        assert installation.apply(self.RULE, house) == [str(old)]
        full = installation.house(leavings_seconds=day, base_files_max_bytes=500)
        assert installation.apply(self.RULE, full) == [str(late)]
        assert list(new.parent.iterdir()) == [new]  # a step may be reading it, full or not
        for_ever = installation.house(keep_base_files_days=None)
        assert installation.find(self.RULE, for_ever) == []

    def test_stay_while_they_are_served_and_when_they_were_asked_for_meanwhile(
        self, installation: Installation
    ) -> None:
        served, asked = self.base(installation, "served", 31), self.base(installation, "asked", 31)
        (installation.root / "bases").mkdir(parents=True)
        (installation.root / "bases" / "Q4_K_M.gguf").hardlink_to(served / "Q4_K_M.gguf")
        [item] = installation.find(self.RULE, installation.house())
        assert item.id == str(asked)
        os.utime(asked)
        with transaction(installation.sessions) as session:
            assert self.RULE.remove(session, installation.house(), item) == Removal.KEPT
        assert asked.is_dir()

    def test_what_a_killed_worker_was_removing_goes_with_other_unfinished_files(
        self, installation: Installation
    ) -> None:
        staged = self.base(installation, ".base." + "0" * 32, 1)
        assert installation.find(self.RULE, installation.house(keep_base_files_days=0.0)) == []
        assert installation.apply(BY_KIND["unfinished file"], installation.house()) == [str(staged)]
