"""Looking at training data: what a submit says, before a worker has read anything."""

from typing import Any

import httpx
import pytest

from tests.api.conftest import FAQ
from tests.training_data.broken_files import Broken, broken_files


def upload(api: httpx.Client, content: bytes = FAQ, name: str = "faq.csv") -> str:
    sent = api.post("/v1/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
    return str(sent.json()["id"])


def inspect(api: httpx.Client, body: dict[str, Any], **query: Any) -> httpx.Response:
    return api.post("/v1/datasets/inspect", json={"base_model": "tiny", **body}, params=query)


class TestInspect:
    def test_is_a_job(self, api: httpx.Client) -> None:
        answer = inspect(api, {"training_file": upload(api), "train_size": 0.5})
        assert answer.status_code == 202
        job = answer.json()
        assert (job["kind"], [step["queue"] for step in job["steps"]]) == ("inspect", ["cpu"])
        assert job["params"]["train_size"] == 0.5

    def test_that_takes_longer_is_answered_as_it_is(self, api: httpx.Client) -> None:
        answer = inspect(api, {"training_file": upload(api)}, wait=0.05)
        assert (answer.status_code, answer.json()["result"]) == (202, None)

    def test_that_is_cancelled_meanwhile_has_ended(self, api: httpx.Client) -> None:
        key = {"Idempotency-Key": "look-once"}
        body = {"base_model": "tiny", "training_file": upload(api)}
        job = api.post("/v1/datasets/inspect", json=body, headers=key).json()
        api.post(f"/v1/jobs/{job['id']}/cancel")
        again = api.post("/v1/datasets/inspect", json=body, headers=key, params={"wait": 30})
        assert (again.status_code, again.json()["id"]) == (200, job["id"])
        assert again.json()["status"] == "cancelled"

    @pytest.mark.parametrize(
        ("content", "body", "param", "words"),
        [
            (b"question,answer\na,\n", {}, "training_file", "Line 2: answer is empty"),
            (b"frage,antwort\na,b\n", {}, "training_file", "no set that can be trained on"),
            (FAQ, {"format": "alpaca"}, "training_file", "the format alpaca needs"),
            (FAQ, {"columns": {"answer": "Antwort"}}, "training_file", "no column 'Antwort'"),
            (FAQ, {"columns": {"reply": "answer"}}, "columns", "reply"),
            (FAQ, {"format": "parquet"}, "format", "format"),
            (FAQ, {"method": "dpo"}, "training_file", "dpo learns from pairs of answers"),
            (FAQ, {"leaks": "hide"}, "leaks", "leaks"),
            (FAQ, {"rows_shown": 1000}, "rows_shown", "100"),
            (FAQ, {"name": "x"}, "name", "There is no field name"),
        ],
    )
    def test_refuses_what_cannot_be_trained_on(
        self, api: httpx.Client, content: bytes, body: dict[str, Any], param: str, words: str
    ) -> None:
        answer = inspect(api, {"training_file": upload(api, content), **body}, wait=5)
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["param"].startswith(param)
        assert words in error["message"]

    @pytest.mark.parametrize("broken", broken_files()[::40], ids=lambda broken: broken.name)
    def test_queues_nothing_for_a_file_that_is_broken(self, api: httpx.Client, broken: Broken) -> None:
        sent = api.post(
            "/v1/files",
            files={"file": (broken.filename, broken.content)},
            data={"purpose": "fine-tune"},
        )
        if sent.status_code != 200:  # an empty one is not even taken
            assert sent.json()["error"]["param"] == "file"
            return
        answer = inspect(api, {"training_file": sent.json()["id"]})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "training_file"

    def test_waits_for_a_minute_at_most(self, api: httpx.Client) -> None:
        answer = inspect(api, {"training_file": upload(api)}, wait=61)
        assert answer.json()["error"]["param"] == "wait"


class TestSeveralFiles:
    def test_each_is_looked_at(self, api: httpx.Client) -> None:
        wrong = upload(api, b"question,answer\na,\n")
        answer = inspect(api, {"training_files": [{"file": upload(api)}, {"file": wrong, "weight": 2}]})
        assert answer.json()["error"]["param"] == "training_files[1].file"

    def test_are_kept_while_a_job_needs_them(self, api: httpx.Client) -> None:
        first, second = upload(api), upload(api)
        inspect(api, {"training_files": [{"file": first}, {"file": second, "weight": 0.5}]})
        assert api.delete(f"/v1/files/{second}").status_code == 409
