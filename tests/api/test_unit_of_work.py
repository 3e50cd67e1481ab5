"""One transaction a request: under more callers than connections, and with several who want the same."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.api.conftest import upload


def test_more_callers_than_connections_all_get_through(api_url: str) -> None:
    """Twenty connections, forty threads, eighty callers: none waits for the pool's timeout of 30 s."""
    limits = httpx.Limits(max_connections=80)
    with httpx.Client(base_url=api_url, trust_env=False, timeout=25, limits=limits) as api:
        began = time.monotonic()
        with ThreadPoolExecutor(80) as pool:
            answers = list(pool.map(lambda _: api.get("/v1/jobs?limit=1").status_code, range(240)))
    assert set(answers) == {200}
    assert time.monotonic() - began < 20


def test_jobs_that_come_together_wait_for_one_pretrain_job(api_url: str, api: httpx.Client) -> None:
    file_id = upload(api)

    def submit(number: int) -> dict[str, str]:
        params = {"base_model": "tiny", "training_file": file_id, "name": f"together{number}"}
        answer = httpx.post(
            f"{api_url}/v1/jobs", json={"kind": "fine_tune", "params": params}, trust_env=False, timeout=20
        )
        assert answer.status_code == 202, answer.text
        job: dict[str, str] = answer.json()
        return job

    with ThreadPoolExecutor(12) as pool:
        jobs = list(pool.map(submit, range(12)))
    assert len({job["waits_for"] for job in jobs}) == 1
