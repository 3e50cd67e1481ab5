"""Rows from databases that the operator named, and answers into them."""

from typing import Any

import pytest
from sqlalchemy import text

from tests.api.asking.conftest import Installation, kill
from tests.api.asking.test_predictions import submit, submitted
from tests.api.conftest import error_of
from training_data.sql_settings import find_target
from worker.sql_target import write_rows

PROMPT = "{input} {context}"


def written(installation: Installation, job_id: str) -> list[tuple[str, str, str]]:
    query = text("SELECT row_key, answer, error FROM answers WHERE job_id = :job_id ORDER BY row_key::int")
    with installation.shop.connect() as connection:
        return [tuple(row) for row in connection.execute(query, {"job_id": job_id})]  # type: ignore[misc]


class TestFromASourceIntoATarget:
    def test_each_row_once_though_the_worker_is_killed(self, installation: Installation) -> None:
        installation.oracle.seconds = 0.01
        made = submitted(
            installation, input_source="tickets", prompt=PROMPT, key_column="id", output_target="answers"
        )
        installation.wait_for(lambda: len(installation.oracle.asked) > 200)
        kill(installation.workers[-1])
        with installation.shop.begin() as connection:
            # What is asked was read at one moment; what comes later is none of this job's.
            connection.execute(text("UPDATE tickets SET question = 'changed'"))
        installation.start_worker()
        job = installation.ended(made, seconds=90)
        assert job["status"] == "succeeded", job["error"]
        rows = written(installation, made)
        expected = [(str(n), f"So: ticket {n} of shop {n % 3}", None) for n in range(1, 1201)]
        assert rows == expected
        assert any("1200 rows were written into 'answers'" in said for said in installation.events(made))
        first = installation.lines(job["result"]["files"]["answers.jsonl"])[0]
        assert first["input"] == {
            "id": 1, "input": "ticket 1", "context": "of shop 1", "created": "2026-01-02",
            "price": "0.25000000000000000000",
        }  # fmt: skip

    def test_written_again_is_written_once(self, installation: Installation) -> None:
        params: dict[str, Any] = {"input_source": "faq", "prompt": "{question}", "output_target": "answers"}
        made = submitted(installation, **params)
        assert installation.ended(made)["status"] == "succeeded"
        target = find_target(
            installation.settings.sql, "answers", project_id="default", param="output_target"
        )
        again = {"job_id": made, "row_key": "1", "answer": "another", "error": None}
        assert write_rows(target, [again]) == 1
        rows = written(installation, made)
        assert (len(rows), rows[0]) == (50, ("1", "another", None))

    def test_what_is_no_text_everywhere(self, installation: Installation) -> None:
        row = '{"input": "nul \\u0000, half \\ud83d"}\n'
        made = submitted(
            installation,
            input_file=installation.upload(row, "rows.jsonl", "user_data"),
            prompt="{input}",
            output_target="answers",
        )
        job = installation.ended(made)
        assert job["status"] == "succeeded", job["error"]
        assert written(installation, made) == [("1", "So: nul �, half ?", None)]
        [answer] = installation.lines(job["result"]["files"]["answers.jsonl"])
        assert answer["answer"] == "So: nul \0, half \ud83d"


class TestRefused:
    @pytest.mark.parametrize("name", ["nobody", "theirs"])
    def test_a_source_that_the_project_has_not(self, installation: Installation, name: str) -> None:
        refused = submit(installation, input_source=name, prompt="{input}")
        error = error_of(refused)
        assert (refused.status_code, error["param"], error["code"]) == (
            400,
            "input_source",
            "source_not_found",
        )
        assert "tickets" in error["message"]
        assert "theirs" not in error["message"].replace(f"no source '{name}'", "")

    @pytest.mark.parametrize(
        ("source", "code"),
        [
            ("slow", "source_timeout"),
            ("writing", "source_broken"),
            ("almighty", "source_not_read_only"),
        ],
    )
    def test_a_source_that_cannot_be_read(self, installation: Installation, source: str, code: str) -> None:
        job = installation.ended(submitted(installation, input_source=source, prompt="{input}"))
        assert (job["status"], job["error"]["code"]) == ("failed", code)
        assert not installation.oracle.asked
        if source == "writing":
            assert "read-only transaction" in job["error"]["message"]

    def test_a_column_that_the_source_has_not(self, installation: Installation) -> None:
        job = installation.ended(submitted(installation, input_source="faq", prompt="{nothing}"))
        assert job["error"]["code"] == "unknown_column"
        assert "question, answer, fold" in job["error"]["message"]

    def test_a_target_that_cannot_tell_rows_apart(self, installation: Installation) -> None:
        made = submitted(installation, input_source="faq", prompt="{question}", output_target="unindexed")
        job = installation.ended(made)
        assert (job["status"], job["error"]["param"]) == ("failed", "output_target")
        assert "no unique or exclusion constraint" in job["error"]["message"]
        assert not installation.oracle.asked

    def test_a_source_that_is_away_tells_nobody_where_it_is(self, installation: Installation) -> None:
        body = {"kind": "predict", "params": {"model": "sage", "input_source": "away", "prompt": "{input}"}}
        made = installation.api.post("/v1/jobs", json={**body, "max_attempts": 1}).json()["id"]
        job = installation.ended(made)
        assert job["status"] == "failed"
        assert "'away' does not answer" in job["error"]["message"]
        told = installation.api.get(f"/v1/jobs/{made}/logs").text + str(job) + str(installation.events(made))
        assert "127.0.0.1" not in told
