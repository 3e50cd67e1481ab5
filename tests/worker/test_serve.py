"""Real workers, real child processes: what becomes of jobs."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery import Celery
from sqlalchemy import select, text

from db.models import Artifact, Attempt, Checkpoint, Event, Step
from db.queries.base_models import resolve_base_model
from db.queries.jobs import cancel_job, list_artifacts
from db.queries.models import resolve
from db.session import transaction
from db.states import JobKind
from db.storage import attempt_folder, attempt_log, claim_storage_root

if TYPE_CHECKING:
    from tests.worker.conftest import Bench, OwnValkey, Processes

ONCE = {"train": "once"}
SLOW = {"train": "slow"}


def attempts(bench: "Bench", job_id: str, step: str = "train") -> list[Attempt]:
    with bench.factory() as session:
        query = select(Attempt).join(Step, Step.id == Attempt.step_id)
        query = query.where(Step.job_id == job_id, Step.name == step).order_by(Attempt.number)
        return list(session.scalars(query))


def folder(bench: "Bench", job_id: str, attempt: int = 1, step: str = "train") -> Path:
    return attempt_folder(bench.settings.storage_root, job_id, step, attempt)


class TestWholeJob:
    def test_rows_and_files_say_what_happened(self, standing: "Bench") -> None:
        job = standing.ended(standing.submit(params={"name": "whole"}))
        root = standing.settings.storage_root
        assert (job.status, job.error) == ("succeeded", None), standing.logs()
        assert [(step.status, step.attempt, step.succeeded_attempt) for step in job.steps] == [
            ("succeeded", 1, 1)
        ] * 4
        assert job.result == {
            "model": "whole", "version": 1, "quantizations": ["Q8_0"], "backend": "llama_server",
            "context_length": 64,
        }  # fmt: skip
        assert job.steps[0].progress == {"done": 2, "total": 2, "eta_seconds": None, "unit": "steps"}
        with standing.factory() as session:
            artifacts = list_artifacts(session, job.id)
            served = resolve(session, "default", "whole")
            events = session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.id)).all()
            checkpoints = session.scalars(select(Checkpoint).where(Checkpoint.job_id == job.id)).all()
        assert [row.name for row in artifacts] == ["train.bin", "export.bin", "verify.bin", "publish.bin"]
        for row in artifacts:
            content = (root / row.path).read_bytes()
            assert (row.bytes, row.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert served.version.weights == str(folder(standing, job.id).relative_to(root) / "model")
        assert served.file.verification == {"quantization": "Q8_0", "top1_agreement": 0.99}
        assert {row.type for row in events} == {"message", "metrics"}
        assert events[-1].message == "The job has succeeded."
        assert next(row.data for row in events if row.type == "metrics") == {
            "step": 1, "loss": None, "text_tokens": 7,
        }  # fmt: skip
        assert {(root / row.path).is_dir() for row in checkpoints} == {True}
        one = attempts(standing, job.id)[0]
        assert (one.outcome, one.exit_code, one.signal) == ("done", 0, None)
        assert one.started_at < one.ended_at  # type: ignore[operator]
        assert attempt_log(root, job.id, "train", 1).exists()

    def test_two_workers_share_the_work_and_run_nothing_twice(self, bench: "Bench") -> None:
        bench.start_worker()
        bench.start_worker()
        bench.wait_for(lambda: bench.logs().count(" ready.") == 2)
        jobs = [bench.submit() for _ in range(6)]
        for job_id in jobs:
            assert bench.ended(job_id, seconds=30).status == "succeeded"
        began = [tuple(note[:2]) for note in bench.notes() if note[3] == "began"]
        assert len(began) == len(set(began)) == 24
        with bench.factory() as session:
            assert session.scalars(text("SELECT count(DISTINCT worker) FROM attempts")).one() == 2
            versions = session.scalars(text("SELECT number FROM model_versions ORDER BY number")).all()
        assert versions == [1, 2, 3, 4, 5, 6]


class TestBadEndings:
    def test_each_has_its_error(self, standing: "Bench") -> None:
        endings: dict[str, tuple[str, dict[str, Any]]] = {
            "refuse": ("refused", {"code": "invalid_input", "param": "training_file"}),
            "exhaust": ("exhausted", {"code": "out_of_memory", "message": "The GPU's memory ran out."}),
            "fill_the_disk": ("exhausted", {"code": "disk_full"}),
            "segfault": ("lost", {"code": "step_failed", "signal": 11, "exit_code": None}),
            "crash": ("lost", {"code": "step_failed", "signal": None, "exit_code": 1}),
            "miss_the_hub": (
                "lost",
                {"code": "hub_unavailable", "param": "base_model", "message": "The hub is away."},
            ),
            "fail": (
                "lost",
                {"code": "step_failed", "message": "Step train: llama-quantize failed: no such type"},
            ),
        }
        jobs = {
            what: standing.submit(do={"train": what}, max_attempts=1 if ending[0] == "lost" else 3)
            for what, ending in endings.items()
        }
        for what, job_id in jobs.items():
            outcome, expected = endings[what]
            job = standing.ended(job_id)
            error = job.error or {}
            assert job.status == "failed"
            assert expected.items() <= error.items(), what
            assert [row.outcome for row in attempts(standing, job_id)] == [outcome]
            assert [step.status for step in job.steps] == ["failed", "cancelled", "cancelled", "cancelled"]
            standing.wait_for(lambda job_id=job_id: not folder(standing, job_id).exists())  # type: ignore[misc]
        crashed = standing.job(jobs["crash"]).error or {}
        assert crashed["message"] == "Step train ended by exit code 1: RuntimeError: boom"
        assert crashed["stderr"].startswith("Traceback")

    def test_a_reward_model_is_told_what_it_took_though_nothing_is_published(self, standing: "Bench") -> None:
        do = {"prepare": "estimate", "train": "take_memory"}
        job = standing.ended(
            standing.submit(JobKind.FINE_TUNE, do=do, params={"method": "reward", "base_model": "org/base"})
        )
        assert job.status == "succeeded", job.error
        assert job.result is not None
        assert job.result["reward_accuracy"] == 1.0
        assert job.result["estimate"]["took_peak_memory_bytes"] == 150
        with standing.factory() as session:
            said = session.scalars(select(Event.message).where(Event.job_id == job.id)).all()
        assert [line for line in said if line.startswith("It took") and "1.50 times" in line]

    def test_a_lost_step_is_tried_until_max_attempts(self, standing: "Bench") -> None:
        job = standing.ended(standing.submit(do={"train": "crash"}, max_attempts=2))
        assert job.status == "failed"
        assert [row.outcome for row in attempts(standing, job.id)] == ["lost", "lost"]
        with standing.factory() as session:
            warned = session.scalars(
                select(Event.message).where(Event.job_id == job.id, Event.level == "warn")
            ).one()
        assert warned.endswith("RuntimeError: boom Trying again at once; 1 more try.")

    def test_a_step_without_progress_is_ended(self, bench: "Bench") -> None:
        bench.settings = bench.settings.model_copy(update={"stall_seconds": 1.0})
        bench.start_worker()
        job = bench.ended(bench.submit(do={"train": "hang"}, max_attempts=1))
        assert job.error is not None
        assert job.error["code"] == "step_stalled"


class TestKilledChild:
    def test_fails_with_the_signal_and_the_worker_takes_the_next_job(self, standing: "Bench") -> None:
        killed, following = standing.submit(do=SLOW, max_attempts=1), standing.submit()
        standing.wait_for(lambda: standing.began(killed))
        standing.wait_for(lambda: attempts(standing, killed)[0].pid is not None)
        time.sleep(0.3)
        os.kill(int(attempts(standing, killed)[0].pid or 0), signal.SIGKILL)
        error = standing.ended(killed).error or {}
        assert (error["code"], error["signal"], error["step"]) == ("step_failed", 9, "train")
        assert error["message"] == "Step train ended by signal 9 (SIGKILL)"
        assert error["stderr"] == "a word on stdout\n"
        assert standing.ended(following).status == "succeeded"

    def test_the_step_itself_killed_is_the_same_and_is_tried_again(self, standing: "Bench") -> None:
        job_id = standing.submit(do=ONCE)
        standing.wait_for(lambda: standing.began(job_id))
        pid = next(int(note[4]) for note in standing.notes() if note[0] == job_id)
        os.kill(pid, signal.SIGKILL)
        assert standing.ended(job_id).status == "succeeded"
        rows = attempts(standing, job_id)
        assert [(row.outcome, row.signal) for row in rows] == [("lost", 9), ("done", None)]
        standing.wait_for(lambda: not folder(standing, job_id).exists())
        assert folder(standing, job_id, 2).exists()
        with standing.factory() as session:
            kept = select(Artifact.attempt).where(Artifact.job_id == job_id, Artifact.step == "train")
            assert session.scalars(kept).all() == [2]


class TestCancel:
    @pytest.mark.parametrize("what", ["slow", "stubborn"])
    def test_a_running_job_ends_within_10_s_and_leaves_nothing(
        self, standing: "Bench", processes: "Processes", what: str
    ) -> None:
        job_id = standing.submit(do={"train": what})
        standing.wait_for(lambda: len(processes(job_id)) == 4)
        with transaction(standing.factory) as session:
            assert cancel_job(session, job_id, project_id="default").status == "cancelling"
        started = time.monotonic()
        job = standing.ended(job_id)
        assert time.monotonic() - started < 10
        assert job.status == "cancelled"
        assert {step.status for step in job.steps} == {"cancelled"}
        assert processes(job_id) == []
        assert not folder(standing, job_id).exists()
        assert [row.outcome for row in attempts(standing, job_id)] == ["released"]

    def test_a_queued_job_never_runs(self, standing: "Bench", processes: "Processes") -> None:
        # While another holds the only slot: an idle worker would have claimed it before we can cancel.
        before = standing.submit(do={"train": "slow"})
        standing.wait_for(lambda: len(processes(before)) > 0)
        job_id = standing.submit()
        with transaction(standing.factory) as session:
            assert cancel_job(session, job_id, project_id="default").status == "cancelled"
            cancel_job(session, before, project_id="default")
        assert standing.ended(standing.submit()).status == "succeeded"
        assert not standing.began(job_id)


class TestLostWorker:
    def test_its_children_end_and_another_worker_goes_on(
        self, bench: "Bench", processes: "Processes"
    ) -> None:
        first = bench.start_worker()
        job_id = bench.submit(do=ONCE)
        bench.wait_for(lambda: len(processes(job_id)) == 4)
        first.kill()
        bench.start_worker()
        job = bench.ended(job_id)
        assert job.status == "succeeded"
        assert [row.outcome for row in attempts(bench, job_id)] == ["lost", "done"]
        # What had left the session of the child is found by its marker.
        bench.wait_for(lambda: processes(job_id) == [] and not folder(bench, job_id).exists())

    def test_a_stopped_one_that_wakes_up_writes_nothing(self, bench: "Bench", processes: "Processes") -> None:
        zombie = bench.start_worker()
        job_id = bench.submit(do=ONCE)
        bench.wait_for(lambda: len(processes(job_id)) == 4)
        zombie.send_signal(signal.SIGSTOP)
        bench.start_worker()
        job = bench.ended(job_id)
        zombie.send_signal(signal.SIGCONT)
        time.sleep(1.5)
        assert job.status == "succeeded"
        assert job.steps[0].succeeded_attempt == 2
        assert [row.outcome for row in attempts(bench, job_id)] == ["lost", "done"]
        with bench.factory() as session:
            query = select(Event).where(Event.attempt == 1, Event.step == "train")
            taken_over = attempts(bench, job_id)[1].started_at
            late = [row for row in session.scalars(query) if row.created_at > taken_over]
        assert late == []
        assert zombie.poll() is None

    def test_an_unheard_ring_is_rung_again(self, bench: "Bench") -> None:
        job_id = bench.submit()
        bench.doorbell.close()
        client = redis.Redis.from_url(bench.settings.require_redis_url())
        client.flushall()
        client.close()
        bench.start_worker()
        assert bench.ended(job_id).status == "succeeded"


@pytest.mark.slow
class TestDeafWorker:
    def test_works_without_a_broker(self, bench: "Bench", own_valkey: "OwnValkey") -> None:
        bench.use_broker(own_valkey.url)
        bench.start_worker()
        assert bench.ended(bench.submit()).status == "succeeded"
        own_valkey.stop()
        job_id = bench.submit(do=SLOW)
        bench.wait_for(lambda: bench.began(job_id))

    @pytest.mark.parametrize("hangs", [False, True], ids=["away", "hung"])
    def test_one_that_starts_without_a_broker_works_and_stops(
        self, bench: "Bench", own_valkey: "OwnValkey", hangs: bool
    ) -> None:
        bench.use_broker(own_valkey.url)
        own_valkey.freeze() if hangs else own_valkey.stop()
        worker = bench.start_worker()
        job_id = bench.submit(do=ONCE)
        bench.wait_for(lambda: bench.began(job_id))
        worker.terminate()
        worker.wait(40)
        assert [row.outcome for row in attempts(bench, job_id)] == ["released"], bench.logs()
        assert bench.job(job_id).steps[0].status == "queued"

    def test_stops_to_be_started_afresh_when_rings_do_not_reach_it(self, bench: "Bench") -> None:
        worker = bench.start_worker()
        bench.wait_for(lambda: "ready" in bench.logs())
        with Celery(broker=bench.settings.require_redis_url()) as app:
            app.control.cancel_consumer("train", reply=True, limit=1, timeout=5)
        job_id = bench.submit()
        assert worker.wait(30) == 0
        assert "worker_deaf" in bench.logs()
        assert not bench.began(job_id)
        bench.start_worker()
        assert bench.ended(job_id).status == "succeeded"


class TestStop:
    def test_sigterm_hands_the_step_back_uncounted(self, bench: "Bench", processes: "Processes") -> None:
        worker = bench.start_worker()
        job_id = bench.submit(do=ONCE)
        bench.wait_for(lambda: len(processes(job_id)) == 4)
        started = time.monotonic()
        worker.terminate()
        assert worker.wait(30) == 0, bench.logs()
        assert time.monotonic() - started < 30
        assert processes(job_id) == []
        step = bench.job(job_id).steps[0]
        assert (step.status, step.failures) == ("queued", 0)
        assert [row.outcome for row in attempts(bench, job_id)] == ["released"]
        with bench.factory() as session:
            assert session.scalars(text("SELECT count(*) FROM workers")).one() == 0
        bench.start_worker()
        assert bench.ended(job_id).status == "succeeded"


class TestWaiting:
    def test_a_fine_tune_waits_for_the_weights_it_starts_from(self, standing: "Bench") -> None:
        with transaction(standing.factory) as session:
            base = resolve_base_model(session, standing.settings, "default", "tiny")
        job_id = standing.submit(
            JobKind.FINE_TUNE,
            params={"name": "faq", "base_model": "tiny"},
            waits_for_job_id=base.waits_for_job_id,
        )
        job = standing.ended(job_id, seconds=30)
        assert job.status == "succeeded", job.error
        assert base.waits_for_job_id is not None
        weights = folder(standing, base.waits_for_job_id) / "model"
        assert job.base is not None
        assert job.base["name"] == "tiny@1"
        train = next(step for step in job.steps if step.name == "train")
        assert train.result == {"step": "train", "base": str(weights)}
        with standing.factory() as session:
            assert resolve(session, "default", "faq").version.base_model == "tiny@1"

    def test_it_fails_when_they_cannot_be_made(self, standing: "Bench") -> None:
        awaited = standing.submit(do={"train": "refuse"})
        job_id = standing.submit(JobKind.FINE_TUNE, waits_for_job_id=awaited)
        error = standing.ended(job_id).error or {}
        assert (error["code"], error["job_id"]) == ("awaited_job_ended", awaited)


class TestStart:
    def test_refuses_a_storage_root_with_another_id(self, bench: "Bench", tmp_path: Path) -> None:
        with transaction(bench.factory) as session:
            claim_storage_root(session, tmp_path / "the-first-one")
        worker = bench.start_worker()
        assert worker.wait(30) == 1
        assert "bears the id none, but the database belongs to storage-" in bench.logs()

    def test_the_app_needs_neither_torch_nor_servers(self) -> None:
        code = "import worker.app, worker.tasks, sys; assert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])
