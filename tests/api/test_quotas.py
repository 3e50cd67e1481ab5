"""What a project may use: jobs at once, GPU minutes a month, bytes, requests a minute."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from api.caller import Caller, Limits
from api.quotas import RequestCounter
from db.session import transaction
from serving.local_port import free_port
from tests.api.conftest import FAQ, error_of, upload
from tests.api.keyed import Keyed

PRETRAIN = {"kind": "pretrain", "params": {"name": "m"}}

ON_TWO_GPUS = """
    WITH made AS (
        INSERT INTO devices (id, host, index, name, shares)
        SELECT 'GPU-of-quotas-' || number, 'h', number, 'RTX', false FROM generate_series(0, 1) AS number
        RETURNING id
    )
    INSERT INTO attempt_devices (attempt_id, device_id, open)
    SELECT attempts.id, made.id, attempts.open FROM made, attempts JOIN steps ON steps.id = attempts.step_id
    WHERE steps.job_id = :id
"""
RAN = """
    INSERT INTO attempts (step_id, project_id, queue, number, worker, host, outcome, started_at, ended_at)
    SELECT steps.id, jobs.project_id, 'train', 1, 'w', 'h', 'done',
           now() - CAST(:ago AS interval) - make_interval(secs => :seconds), now() - CAST(:ago AS interval)
    FROM steps JOIN jobs ON jobs.id = steps.job_id WHERE jobs.id = :id AND position = 0
"""


@pytest.fixture
def project(keyed: Keyed, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").lower()[-60:].strip("-")
    return keyed.project(name)


@pytest.fixture
def client(keyed: Keyed, project: str) -> httpx.Client:
    return keyed.client(project, "admin")


def limit(keyed: Keyed, project: str, **limits: int | None) -> None:
    """Set limits; the process that is asked for it forgets the old ones at once."""
    answer = keyed.operator.post(f"/v1/projects/{project}", json=limits)
    assert answer.status_code == 200, answer.text


def refused(answer: httpx.Response, code: str) -> dict[str, Any]:
    assert answer.status_code == 429, answer.text
    error = error_of(answer)
    assert (error["code"], error["type"]) == (code, "rate_limit_error")
    return error


class TestJobs:
    def test_two_submits_at_once_do_not_both_get_the_last_place(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_jobs=3)

        def submit(number: int) -> int:
            body = {"kind": "pretrain", "params": {"name": f"m{number}"}}
            return client.post("/v1/jobs", json=body).status_code

        with ThreadPoolExecutor(12) as pool:
            codes = sorted(pool.map(submit, range(24)))
        assert codes == [202] * 3 + [429] * 21
        assert len(client.get("/v1/jobs").json()["data"]) == 3
        answer = client.post("/v1/jobs", json=PRETRAIN)
        assert (
            "has 3 jobs queued or running, and may have 3"
            in refused(answer, "jobs_quota_exceeded")["message"]
        )
        assert answer.headers["x-should-retry"] == "false"

    def test_a_place_is_free_once_a_job_ends_or_is_paused_and_taken_when_it_goes_on(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_jobs=1)
        paused = client.post("/v1/jobs", json=PRETRAIN).json()["id"]
        client.post(f"/v1/jobs/{paused}/pause")
        second = client.post("/v1/jobs", json=PRETRAIN)
        assert second.status_code == 202
        refused(client.post(f"/v1/jobs/{paused}/resume"), "jobs_quota_exceeded")
        client.post(f"/v1/jobs/{second.json()['id']}/cancel")
        assert client.post(f"/v1/jobs/{paused}/resume").json()["status"] == "queued"
        assert client.post(f"/v1/jobs/{paused}/resume").status_code == 200
        refused(client.post(f"/v1/jobs/{second.json()['id']}/retry"), "jobs_quota_exceeded")

    def test_every_way_to_a_job_is_counted(self, keyed: Keyed, project: str, client: httpx.Client) -> None:
        file_id = upload(client)
        store = client.post("/v1/vector_stores", json={"name": "s"}).json()["id"]
        ended = client.post("/v1/jobs", json=PRETRAIN).json()["id"]
        client.post(f"/v1/jobs/{ended}/cancel")
        limit(keyed, project, max_jobs=0)
        for path, body in (
            ("/v1/jobs", PRETRAIN),
            ("/v1/jobs", {"kind": "ingest", "params": {"collection": store, "files": [file_id]}}),
            (f"/v1/jobs/{ended}/clone", {}),
            (f"/v1/jobs/{ended}/retry", {}),
            ("/v1/vector_stores", {"file_ids": [file_id]}),
            (f"/v1/vector_stores/{store}/files", {"file_id": file_id}),
            (f"/v1/vector_stores/{store}/file_batches", {"file_ids": [file_id]}),
            ("/v1/models/tiny/documents", {"file_ids": [file_id]}),
        ):
            refused(client.post(path, json=body), "jobs_quota_exceeded")
        assert client.get(f"/v1/vector_stores/{store}/files").json()["data"] == []
        assert len(client.get("/v1/vector_stores").json()["data"]) == 1

    def test_what_a_job_needs_first_takes_no_place_of_its_own(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_jobs=1)
        params = {"base_model": "tiny", "training_file": upload(client), "name": "faq"}
        answer = client.post("/v1/jobs", json={"kind": "fine_tune", "params": params})
        assert answer.status_code == 202
        assert answer.json()["waits_for"]
        refused(client.post("/v1/jobs", json=PRETRAIN), "jobs_quota_exceeded")

    def test_other_projects_are_not_held_up(self, keyed: Keyed, project: str, client: httpx.Client) -> None:
        limit(keyed, project, max_jobs=0)
        assert keyed.operator.post("/v1/jobs", json=PRETRAIN).status_code == 202


class TestGpuMinutes:
    def ran(self, keyed: Keyed, job_id: str, minutes: float, *, ago: str = "0 minutes") -> None:
        """Let the job's first step have run on a GPU's queue."""
        with transaction(keyed.sessions) as session:
            session.execute(text(RAN), {"id": job_id, "seconds": minutes * 60, "ago": ago})

    def test_of_this_month_are_counted_also_those_of_deleted_jobs(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_gpu_minutes=10)
        old, new = (client.post("/v1/jobs", json=PRETRAIN).json()["id"] for _ in range(2))
        self.ran(keyed, old, 500, ago="40 days")
        self.ran(keyed, new, 0.25)
        with transaction(keyed.sessions) as session:
            session.execute(text(ON_TWO_GPUS), {"id": new})
        used = keyed.operator.get(f"/v1/projects/{project}").json()["usage"]
        assert used["gpu_minutes"] == pytest.approx(0.5, abs=0.01)
        limit(keyed, project, max_gpu_minutes=0)
        for job_id in (old, new):
            client.post(f"/v1/jobs/{job_id}/cancel")
            assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
        used = keyed.operator.get(f"/v1/projects/{project}").json()["usage"]
        assert used["gpu_minutes"] == pytest.approx(0.5, abs=0.01)
        error = refused(client.post("/v1/jobs", json=PRETRAIN), "gpu_minutes_quota_exceeded")
        assert "has used 0.5 GPU minutes this month, and may use 0" in error["message"]


class TestBytes:
    def test_an_upload_that_fits_to_the_byte_and_one_that_does_not(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_bytes=2 * len(FAQ))
        upload(client)
        first = upload(client)
        form = {"files": {"file": ("faq.csv", FAQ)}, "data": {"purpose": "fine-tune"}}
        refused(client.post("/v1/files", **form), "bytes_quota_exceeded")
        refused(client.post("/v1/jobs", json=PRETRAIN), "bytes_quota_exceeded")
        kept = {row["id"] for row in client.get("/v1/files").json()["data"]}
        assert keyed.operator.get(f"/v1/projects/{project}").json()["usage"]["bytes"] == 2 * len(FAQ)
        assert len(kept) == 2
        client.delete(f"/v1/files/{first}")
        upload(client)

    def test_two_at_once_do_not_both_fit(self, keyed: Keyed, project: str, client: httpx.Client) -> None:
        limit(keyed, project, max_bytes=2 * len(FAQ))

        def send(_: int) -> int:
            return client.post("/v1/files", files={"file": ("faq.csv", FAQ)}).status_code

        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(send, range(6))) == [200] * 2 + [429] * 4
        assert len(client.get("/v1/files").json()["data"]) == 2

    def test_one_far_too_large_is_refused_before_it_is_written(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_bytes=1000)
        folder = keyed.settings.storage_root / "files"
        before = set(folder.iterdir()) if folder.is_dir() else set()
        body = {"file": ("big.csv", b"x" * 500_000)}
        answer = client.post("/v1/files", files=body)
        assert "at most" not in refused(answer, "bytes_quota_exceeded")["message"]
        assert (set(folder.iterdir()) if folder.is_dir() else set()) == before


class TestRequests:
    def test_are_counted_and_told_and_refused_with_when_to_come_again(
        self, keyed: Keyed, project: str, client: httpx.Client
    ) -> None:
        limit(keyed, project, max_requests_per_minute=3)
        left = []
        for path in ("/v1/jobs", "/v1/jobs/none", "/v1/models"):
            answer = client.get(path)
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            left.append(answer.headers["x-ratelimit-remaining-requests"])
        assert left == ["2", "1", "0"]
        answer = client.get("/v1/models")
        refused(answer, "rate_limit_exceeded")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert "x-should-retry" not in answer.headers
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert client.get("/healthz").status_code == 200
        limit(keyed, project, max_requests_per_minute=None)
        answer = client.get("/v1/models")
        assert answer.status_code == 200
        assert "x-ratelimit-limit-requests" not in answer.headers

    def test_two_processes_count_together(self, valkey_url: str) -> None:
        caller = Caller(f"shared-{time.monotonic_ns()}", limits=Limits(max_requests_per_minute=10))

        async def count() -> list[int]:
            counters = [RequestCounter(valkey_url) for _ in range(2)]
            windows = [await counter.count(caller) for counter in counters * 2]
            for counter in counters:
                await counter.close()
            return [window.number for window in windows if window is not None]

        assert asyncio.run(count()) == [1, 2, 3, 4]

    def test_nobody_is_refused_when_the_broker_is_away(self) -> None:
        async def count() -> object:
            counter = RequestCounter(f"redis://127.0.0.1:{free_port()}/0")
            caller = Caller(limits=Limits(max_requests_per_minute=0))
            for _ in range(50):
                window = await counter.count(caller)
            await counter.close()
            return window

        assert asyncio.run(count()) is None
