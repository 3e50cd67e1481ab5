"""Jobs over HTTP: submitted, looked at, listed, cancelled, tried again, deleted."""

from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from db.models import Artifact, Attempt, Step
from db.queries.jobs import add_event, end_job, get_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobStatus, StepStatus
from tests.api.conftest import FAQ, Publish, error_of, submit, upload

PAIRS = b"prompt,chosen,rejected\na,b,c\n"


def run_first_step(factory: SessionFactory, job_id: str) -> None:
    """What a claim writes."""
    with transaction(factory) as session:
        job = get_job(session, job_id, project_id="default", lock=True)
        step = job.steps[0]
        move(session, job, JobStatus.RUNNING)
        move(session, step, StepStatus.RUNNING)
        step.attempt = 1
        step.progress = {"done": 3, "total": 12, "eta_seconds": 40.0, "unit": "rows"}
        step.progressed_at = func.clock_timestamp()
        attempt = Attempt(step_id=step.id, number=1, worker="w1", host="h", pid=1, process_group=1)
        attempt.project_id, attempt.queue = job.project_id, step.queue
        session.add(attempt)


def end(factory: SessionFactory, job_id: str, status: JobStatus) -> None:
    with transaction(factory) as session:
        job = get_job(session, job_id, project_id="default", lock=True)
        if job.status == JobStatus.RUNNING:
            move(session, job.steps[0], StepStatus.FAILED)
        error = {"code": "step_failed", "message": "It broke.", "param": None}
        end_job(session, job, status, error=error if status == JobStatus.FAILED else None)


class TestSubmit:
    def test_answers_202_with_the_job(self, api: httpx.Client) -> None:
        job = submit(api)
        assert job["object"] == "job"
        assert job["kind"] == "fine_tune"
        assert job["status"] == "queued"
        assert job["params"]["learning_rate"] == "auto"
        looked_at = api.get(f"/v1/jobs/{job['id']}").json()
        assert list(looked_at["params"].items()) == list(job["params"].items())
        assert [step["name"] for step in job["steps"]] == ["prepare", "train", "export", "verify", "publish"]
        assert set(job["steps"][0]) == {"name", "queue", "status", "attempt", "started_at", "finished_at"}
        assert job["steps"][0]["queue"] == "cpu"
        assert isinstance(job["created_at"], int)
        assert (
            job["started_at"]
            is job["finished_at"]
            is job["progress"]
            is job["result"]
            is job["error"]
            is None
        )

    def test_a_job_on_tiny_waits_for_the_job_that_makes_it(self, api: httpx.Client) -> None:
        first, second = submit(api, base_model="tiny"), submit(api, base_model="tiny", name="faq2")
        assert first["waits_for"] == second["waits_for"]
        made = api.get(f"/v1/jobs/{first['waits_for']}").json()
        assert made["kind"] == "pretrain"
        assert first["steps"][0]["status"] == "pending"

    @pytest.mark.parametrize(
        "case",
        [
            (PAIRS, "p.csv", {}, "dpo", "pairs of answers, which dpo learns from"),
            (b'{"instruction": "a", "output": "b", "kto_tag": true}\n', "k.jsonl", {}, "kto", "good or bad"),
            (b"A text.\n", "t.txt", {}, "pretraining", "plain text"),
            (PAIRS, "p.csv", {"method": "orpo"}, "orpo", None),
            (FAQ, "faq.csv", {}, "supervised", None),
        ],
    )
    def test_without_a_method_takes_the_one_that_learns_from_the_rows(
        self, api: httpx.Client, case: tuple[bytes, str, dict[str, str], str, str | None]
    ) -> None:
        rows, name, given, method, told = case
        job = submit(api, training_file=upload(api, rows, name), **given)
        assert job["params"]["method"] == method
        events = api.get(f"/v1/jobs/{job['id']}/events").json()["data"]
        said = [event["message"] for event in events if event["message"].startswith("No method was named")]
        assert len(said) == (told is not None)
        assert all(told in message for message in said if told)

    @pytest.mark.parametrize(
        ("given", "param", "says"),
        [
            ({"max_length": 8, "packing": True}, "packing", "dpo tells answers apart"),
            ({"validation_columns": {"prompt": "Q"}}, "validation_columns", "goes with validation_file"),
        ],
    )
    def test_what_does_not_go_with_the_rows_is_refused(
        self, api: httpx.Client, given: dict[str, Any], param: str, says: str
    ) -> None:
        pairs = upload(api, PAIRS, "pairs.csv")
        params = {"base_model": "org/base", "training_file": pairs, "name": "faq", **given}
        answer = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param
        assert says in error_of(answer)["message"]

    def test_pretrain_needs_only_a_name(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "small"}, "priority": 5})
        assert answer.status_code == 202
        assert answer.json()["priority"] == 5

    def test_deepspeed_is_one_that_the_operator_has_named(self, api: httpx.Client) -> None:
        params = {"base_model": "org/base", "training_file": upload(api), "name": "m", "deepspeed": "zero2"}
        answer = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "deepspeed"
        assert "The operator has named none (LATHE_DEEPSPEED)" in error["message"]

    def test_a_fine_tune_may_not_replace_its_base(self, api: httpx.Client, publish: Publish) -> None:
        params = {"base_model": "org/x", "training_file": upload(api), "name": "tiny"}
        answer = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "name"


class TestLookAt:
    def test_shows_progress_with_the_time_left_and_attempts(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        job_id = submit(api)["id"]
        run_first_step(session_factory, job_id)
        job = api.get(f"/v1/jobs/{job_id}").json()
        assert job["status"] == "running"
        assert job["progress"].pop("eta_seconds") == pytest.approx(40, abs=5)
        assert job["progress"] == {"step": "prepare", "done": 3, "total": 12, "unit": "rows", "failed": None}
        [attempt] = job["steps"][0]["attempts"]
        assert attempt["number"] == 1
        assert attempt["outcome"] is attempt["error"] is None

    def test_shows_why_an_attempt_ended(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = submit(api)["id"]
        run_first_step(session_factory, job_id)
        error = {"code": "step_failed", "message": "Step prepare ended by signal 9.", "param": None}
        with transaction(session_factory) as session:
            attempt = session.scalars(select(Attempt).join(Step).where(Step.job_id == job_id)).one()
            attempt.outcome, attempt.signal, attempt.error = "lost", 9, error
        [shown] = api.get(f"/v1/jobs/{job_id}").json()["steps"][0]["attempts"]
        assert (shown["outcome"], shown["signal"], shown["error"]) == ("lost", 9, error)

    def test_unknown_is_404(self, api: httpx.Client) -> None:
        answer = api.get("/v1/jobs/job-nope")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"

    def test_lists_page_by_page_and_by_kind_and_status(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        ids = [submit(api, name=f"m{n}")["id"] for n in range(3)]
        api.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "p"}})
        end(session_factory, ids[0], JobStatus.FAILED)
        first = api.get("/v1/jobs", params={"kind": "fine_tune", "limit": 2}).json()
        assert [row["id"] for row in first["data"]] == [ids[2], ids[1]]
        assert first["has_more"] is True
        assert (first["first_id"], first["last_id"]) == (ids[2], ids[1])
        second = api.get("/v1/jobs", params={"kind": "fine_tune", "after": first["last_id"]}).json()
        assert second["data"][0]["id"] == ids[0]
        last = api.get("/v1/jobs", params={"after": second["data"][-1]["id"], "limit": 100}).json()
        assert last["has_more"] is False
        failed = api.get("/v1/jobs", params={"status": "failed", "limit": 1}).json()
        assert [row["id"] for row in failed["data"]] == [ids[0]]
        assert failed["data"][0]["error"]["code"] == "step_failed"

    def test_a_wrong_filter_is_named(self, api: httpx.Client) -> None:
        error = error_of(api.get("/v1/jobs", params={"status": "nope"}))
        assert error["param"] == "status"
        assert "'queued'" in error["message"]


class TestCancel:
    def test_a_queued_job_is_cancelled_at_once(self, api: httpx.Client) -> None:
        job_id = submit(api)["id"]
        assert api.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        assert api.post(f"/v1/jobs/{job_id}/cancel").status_code == 200

    def test_a_running_job_is_cancelling(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = submit(api)["id"]
        run_first_step(session_factory, job_id)
        assert api.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelling"

    def test_a_failed_job_is_a_conflict_that_is_not_worth_repeating(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        job_id = submit(api)["id"]
        end(session_factory, job_id, JobStatus.FAILED)
        answer = api.post(f"/v1/jobs/{job_id}/cancel")
        assert answer.status_code == 409
        assert answer.headers["x-should-retry"] == "false"
        assert error_of(answer)["code"] == "job_ended"


class TestRetry:
    def test_goes_on_from_the_first_unfinished_step(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        job_id = submit(api)["id"]
        run_first_step(session_factory, job_id)
        end(session_factory, job_id, JobStatus.FAILED)
        job = api.post(f"/v1/jobs/{job_id}/retry").json()
        assert job["status"] == "queued"
        assert job["error"] is job["finished_at"] is None
        assert [step["status"] for step in job["steps"]] == ["queued"] + ["pending"] * 4

    def test_a_job_that_has_not_ended_is_refused(self, api: httpx.Client) -> None:
        assert api.post(f"/v1/jobs/{submit(api)['id']}/retry").status_code == 409

    def test_a_job_that_has_run_for_as_long_as_it_may_needs_more(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        job_id = submit(api)["id"]
        run_first_step(session_factory, job_id)
        end(session_factory, job_id, JobStatus.FAILED)
        with transaction(session_factory) as session:
            job = get_job(session, job_id, project_id="default")
            early = text("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE step_id = :id")
            session.execute(early, {"id": job.steps[0].id})
            job.max_runtime_seconds = 60
        for body in (None, {}, {"max_runtime_seconds": 3600}):
            error = error_of(api.post(f"/v1/jobs/{job_id}/retry", json=body))
            assert (error["code"], error["param"]) == ("max_runtime_exceeded", "max_runtime_seconds")
        assert api.get(f"/v1/jobs/{job_id}").json()["status"] == "failed"
        answer = api.post(f"/v1/jobs/{job_id}/retry", json={"max_runtime_seconds": 7200})
        assert (answer.status_code, answer.json()["max_runtime_seconds"]) == (200, 7200)
        assert api.get(f"/v1/jobs/{job_id}").json()["runtime_seconds"] == pytest.approx(3600, abs=60)

    def test_a_job_whose_file_is_gone_is_refused(self, api: httpx.Client) -> None:
        job = submit(api)
        api.post(f"/v1/jobs/{job['id']}/cancel")
        file_id = job["params"]["training_file"]
        assert api.delete(f"/v1/files/{file_id}").status_code == 200
        answer = api.post(f"/v1/jobs/{job['id']}/retry")
        assert answer.status_code == 409
        assert file_id in error_of(answer)["message"]
        assert api.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"

    def test_a_file_of_a_job_that_is_tried_again_stays(self, api: httpx.Client) -> None:
        job = submit(api)
        api.post(f"/v1/jobs/{job['id']}/cancel")
        assert api.post(f"/v1/jobs/{job['id']}/retry").status_code == 200
        assert api.delete(f"/v1/files/{job['params']['training_file']}").status_code == 409


class TestDelete:
    def test_removes_rows_and_folder(
        self, api: httpx.Client, session_factory: SessionFactory, settings: Settings
    ) -> None:
        job_id = submit(api)["id"]
        assert api.delete(f"/v1/jobs/{job_id}").status_code == 409
        api.post(f"/v1/jobs/{job_id}/cancel")
        folder = settings.storage_root / "jobs" / job_id
        folder.mkdir(parents=True)
        assert api.delete(f"/v1/jobs/{job_id}").json() == {"id": job_id, "object": "job", "deleted": True}
        assert not folder.exists()
        assert api.get(f"/v1/jobs/{job_id}").status_code == 404


class TestPauseAndResume:
    def test_a_queued_job_is_paused_at_once_and_queued_again(self, api: httpx.Client) -> None:
        job_id = submit(api)["id"]
        for verb, status in (
            ("pause", "paused"),
            ("pause", "paused"),
            ("resume", "queued"),
            ("resume", "queued"),
        ):
            answer = api.post(f"/v1/jobs/{job_id}/{verb}")
            assert (answer.status_code, answer.json()["status"]) == (200, status)

    def test_a_running_job_is_pausing(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = submit(api)["id"]
        run_first_step(session_factory, job_id)
        assert api.post(f"/v1/jobs/{job_id}/pause").json()["status"] == "pausing"
        assert api.post(f"/v1/jobs/{job_id}/resume").json()["status"] == "running"

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_an_ended_job_is_a_conflict_that_says_what_to_do(self, api: httpx.Client, verb: str) -> None:
        job_id = submit(api)["id"]
        api.post(f"/v1/jobs/{job_id}/cancel")
        answer = api.post(f"/v1/jobs/{job_id}/{verb}")
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "job_ended"
        assert "/retry" in error_of(answer)["message"]

    def test_an_unknown_job_is_404(self, api: httpx.Client) -> None:
        assert api.post("/v1/jobs/job-nope/pause").status_code == 404


class TestEvents:
    def test_pages_and_types(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = submit(api)["id"]
        with transaction(session_factory) as session:
            for n in range(3):
                add_event(session, job_id, f"event {n}", step="train", attempt=1)
            add_event(session, job_id, "", type="metrics", step="train", data={"loss": 1.5})
        first = api.get(f"/v1/jobs/{job_id}/events", params={"limit": 2}).json()
        assert [row["message"] for row in first["data"]] == ["event 0", "event 1"]
        rest = api.get(f"/v1/jobs/{job_id}/events", params={"after": first["last_id"]}).json()
        assert [row["type"] for row in rest["data"]] == ["message", "metrics"]
        [row] = api.get(f"/v1/jobs/{job_id}/metrics").json()["data"]
        assert row["data"] == {"loss": 1.5}

    def test_measurements_are_series_too(self, api: httpx.Client, session_factory: SessionFactory) -> None:
        job_id = submit(api)["id"]
        with transaction(session_factory) as session:
            for step in range(1, 41):
                values = {"step": step, "loss": 1 / step}
                add_event(session, job_id, "", type="metrics", step="train", attempt=1, data=values)
        answer = api.get(f"/v1/jobs/{job_id}/metrics/series", params={"points": 10}).json()
        [series] = answer.pop("data")
        assert answer == {"object": "job.metric_series", "job_id": job_id, "points": 10, "superseded": 0}
        assert (series["step"], series["name"], series["measured"]) == ("train", "loss", 40)
        assert series["steps"][0] == 1
        assert series["steps"][-1] == 40
        assert len(series["steps"]) == len(series["values"]) == len(series["attempts"]) <= 10
        refused = api.get(f"/v1/jobs/{job_id}/metrics/series", params={"points": 5})
        assert error_of(refused)["param"] == "points"

    def test_an_id_that_is_none_is_named(self, api: httpx.Client) -> None:
        job_id = submit(api)["id"]
        for after in ("x", "event-" + "9" * 40):
            answer = api.get(f"/v1/jobs/{job_id}/events", params={"after": after})
            assert answer.status_code == 400
            assert error_of(answer)["param"] == "after"


class TestLogs:
    def test_pages_go_through_every_attempt(
        self, api: httpx.Client, session_factory: SessionFactory, settings: Settings
    ) -> None:
        job_id = submit(api)["id"]
        with transaction(session_factory) as session:
            for step in session.scalars(select(Step).where(Step.job_id == job_id, Step.position < 2)):
                step.attempt = 2
        for step_name in ("prepare", "train"):
            folder = settings.storage_root / "jobs" / job_id / step_name
            folder.mkdir(parents=True)
            (folder / "1.log").write_bytes(b"10%\r50%\r100%\nsecond \xff\n")
            (folder / "2.log").write_bytes(b"no line end")
        everything = api.get(f"/v1/jobs/{job_id}/logs").json()["data"]
        assert [row["line"] for row in everything[:3]] == ["100%", "second \ufffd", "no line end"]
        assert len(everything) == 6
        paged: list[dict[str, Any]] = []
        after = None
        while True:
            params = {"limit": 1} | ({"after": after} if after else {})
            answer = api.get(f"/v1/jobs/{job_id}/logs", params=params).json()
            paged += answer["data"]
            after = answer["last_id"]
            if not answer["has_more"]:
                break
        assert paged == everything
        only = api.get(f"/v1/jobs/{job_id}/logs", params={"step": "train", "attempt": 2}).json()["data"]
        assert [(row["step"], row["attempt"]) for row in only] == [("train", 2)]

    def test_an_unknown_step_is_named(self, api: httpx.Client) -> None:
        job_id = submit(api)["id"]
        error = error_of(api.get(f"/v1/jobs/{job_id}/logs", params={"step": "nope"}))
        assert error["param"] == "step"


class TestArtifacts:
    @pytest.fixture
    def job_id(self, api: httpx.Client, session_factory: SessionFactory, settings: Settings) -> str:
        job_id: str = submit(api)["id"]
        folder = settings.storage_root / "jobs" / job_id / "export" / "1"
        folder.mkdir(parents=True)
        (folder / "faq-Q4_K_M.gguf").write_bytes(b"0123456789")
        (settings.storage_root.parent / "secret").write_text("secret")
        with transaction(session_factory) as session:
            for name, path in (
                ("faq-Q4_K_M.gguf", f"jobs/{job_id}/export/1/faq-Q4_K_M.gguf"), ("outside", "../secret")
            ):  # fmt: skip
                session.add(
                    Artifact(
                        job_id=job_id,
                        step="export",
                        attempt=1,
                        name=name,
                        path=path,
                        bytes=10,
                        sha256="ab" * 32,
                    )
                )
        return job_id

    def test_lists_them(self, api: httpx.Client, job_id: str) -> None:
        row = api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"][0]
        assert {key: row[key] for key in ("name", "bytes", "sha256", "step")} == {
            "name": "faq-Q4_K_M.gguf", "bytes": 10, "sha256": "ab" * 32, "step": "export",
        }  # fmt: skip

    def test_gives_the_bytes_whole_or_by_range(self, api: httpx.Client, job_id: str) -> None:
        url = f"/v1/jobs/{job_id}/artifacts/faq-Q4_K_M.gguf"
        whole = api.get(url)
        assert whole.content == b"0123456789"
        assert whole.headers["etag"] == f'"{"ab" * 32}"'
        part = api.get(url, headers={"range": "bytes=2-4"})
        assert (part.status_code, part.content) == (206, b"234")
        assert api.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
        beyond = api.get(url, headers={"range": "bytes=50-60"})
        assert beyond.status_code == 416
        assert error_of(beyond)["code"] == "range_not_satisfiable"

    def test_nothing_outside_of_the_storage_root(self, api: httpx.Client, job_id: str) -> None:
        assert api.get(f"/v1/jobs/{job_id}/artifacts/outside").status_code == 404
        assert api.get(f"/v1/jobs/{job_id}/artifacts/..%2F..%2Fsecret").status_code == 404
