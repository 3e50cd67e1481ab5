"""`POST /v1/jobs/estimate`: the body of a fine-tune, a job of its own, and an answer that may wait for it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from db.queries.jobs import end_job, get_job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.states import JobStatus, StepStatus
from tests.api.conftest import error_of, upload

TOLD = {"fits": True, "refusal": None, "steps": 12}


def body(api: httpx.Client, **params: Any) -> dict[str, Any]:
    given = {"base_model": "org/base", "training_file": upload(api), "name": "faq", **params}
    return {"kind": "fine_tune", "params": given}


def succeed(factory: SessionFactory, job_id: str) -> None:
    """What a worker writes."""
    with transaction(factory) as session:
        job = get_job(session, job_id, project_id="default", lock=True)
        move(session, job, JobStatus.RUNNING)
        move(session, job.steps[0], StepStatus.RUNNING)
        move(session, job.steps[0], StepStatus.SUCCEEDED)
        end_job(session, job, JobStatus.SUCCEEDED, result=TOLD)


class TestSubmit:
    def test_takes_the_body_of_a_fine_tune(self, api: httpx.Client) -> None:
        sent = body(api, epochs=3)
        answer = api.post("/v1/jobs/estimate", json=sent)
        assert answer.status_code == 202
        job = answer.json()
        assert (job["kind"], job["status"]) == ("estimate", "queued")
        assert [(step["name"], step["queue"]) for step in job["steps"]] == [("estimate", "cpu")]
        tuned = api.post("/v1/jobs", json=sent).json()
        assert job["params"] == tuned["params"]

    def test_takes_the_body_of_quantising(self, api: httpx.Client) -> None:
        sent = {"kind": "quantize", "params": {"base_model": "tiny", "name": "tiny-gptq", "bits": 8}}
        answer = api.post("/v1/jobs/estimate", json=sent)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert (job["kind"], job["params"]["bits"]) == ("estimate_quantize", 8)
        assert [(step["name"], step["queue"]) for step in job["steps"]] == [("estimate", "cpu")]
        sent["params"] = {**sent["params"], "bits": 5}
        refused = error_of(api.post("/v1/jobs/estimate", json=sent))
        assert refused == error_of(api.post("/v1/jobs", json=sent))

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"learning_rate": -1}, "params.learning_rate"),
            ({"training_file": "file-none"}, "training_file"),
            ({"base_model": "nothing here"}, "base_model"),
        ],
    )
    def test_refuses_what_a_fine_tune_is_refused_for(
        self, api: httpx.Client, change: dict[str, Any], param: str
    ) -> None:
        sent = body(api, **change)
        refused = error_of(api.post("/v1/jobs/estimate", json=sent))
        assert refused == error_of(api.post("/v1/jobs", json=sent))
        assert refused["param"].endswith(param.removeprefix("params."))

    def test_refuses_another_kind(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs/estimate", json={"kind": "pretrain", "params": {"name": "x"}})
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "kind"

    def test_is_safe_to_repeat(self, api: httpx.Client) -> None:
        sent, headers = body(api), {"Idempotency-Key": "estimate-once"}
        first = api.post("/v1/jobs/estimate", json=sent, headers=headers)
        second = api.post("/v1/jobs/estimate", json=sent, headers=headers)
        assert second.json()["id"] == first.json()["id"]
        assert second.headers["idempotent-replayed"] == "true"


class TestWait:
    def test_answers_the_result_when_the_job_has_ended(
        self, api: httpx.Client, session_factory: SessionFactory
    ) -> None:
        sent = body(api)
        before = {job["id"] for job in api.get("/v1/jobs?kind=estimate&limit=100").json()["data"]}

        def work() -> None:
            found: set[str] = set()
            while not found:
                time.sleep(0.02)
                rows = api.get("/v1/jobs?kind=estimate&limit=100").json()["data"]
                found = {job["id"] for job in rows} - before
            succeed(session_factory, found.pop())

        with Beside(work):
            answer = api.post("/v1/jobs/estimate?wait=20", json=sent)
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["result"]) == ("succeeded", TOLD)

    def test_answers_202_when_it_has_not(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs/estimate?wait=0.2", json=body(api))
        assert answer.status_code == 202
        assert (answer.json()["status"], answer.json()["result"]) == ("queued", None)

    @pytest.mark.parametrize("wait", ["61", "-1", "soon", "nan"])
    def test_takes_a_minute_at_most(self, api: httpx.Client, wait: str) -> None:
        answer = api.post(f"/v1/jobs/estimate?wait={wait}", json=body(api))
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "wait"


class Beside:
    """A thread beside the test, which it must outlive."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
