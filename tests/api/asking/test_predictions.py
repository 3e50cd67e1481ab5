"""Predictions: a model asked for each row of a table, by a real worker."""

import csv
import io
import json
import re
from typing import Any

import httpx
import pyarrow
import pyarrow.parquet
import pytest

from tests.api.asking.conftest import CONCURRENCY, Installation
from tests.api.conftest import error_of

ROWS = [
    {"id": "a", "input": "Who, then?", "context": 'A "quoted" one', "kwargs": '{"max_tokens": 5}'},
    {"id": "b", "input": "flaky\nline", "context": "", "kwargs": ""},
    {"id": "c", "input": "Où?", "context": "x", "kwargs": '{"temperature": 1.5}'},
]

# More than pydantic can write.
DEEP = json.loads('{"a": ' * 300 + "1" + "}" * 300)


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def submit(installation: Installation, **params: Any) -> httpx.Response:
    return installation.api.post("/v1/jobs", json={"kind": "predict", "params": {"model": "sage", **params}})


def submitted(installation: Installation, **params: Any) -> str:
    answer = submit(installation, **params)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


class TestAFile:
    def test_a_csv_in_and_a_csv_out(self, installation: Installation) -> None:
        made = submitted(
            installation,
            input_file=installation.upload(as_csv(ROWS), "rows.csv", "user_data"),
            prompt="{input} {{{context}}}",
            system_prompt="For {id}.",
            inference_kwargs={"temperature": 0, "max_tokens": 50},
            inference_kwargs_column="kwargs",
            key_column="id",
            output_format="csv",
        )
        job = installation.ended(made)
        assert job["status"] == "succeeded", job["error"]
        assert {name: job["result"][name] for name in ("rows", "answered", "failed", "unasked")} == {
            "rows": 3, "answered": 3, "failed": 0, "unasked": 0,
        }  # fmt: skip
        text = installation.client.files.content(job["result"]["files"]["answers.csv"]).text
        assert text == installation.api.get(f"/v1/jobs/{made}/artifacts/answers.csv").text
        answers = list(csv.DictReader(io.StringIO(text)))
        assert [row["answer"] for row in answers] == [
            'So: Who, then? {A "quoted" one}', "So: flaky\nline {}", "So: Où? {x}",
        ]  # fmt: skip
        assert [row["input"] for row in answers] == [row["input"] for row in ROWS]
        assert answers[0]["completion_tokens"] == "2"
        asked = {body["messages"][0]["content"]: body for body in installation.oracle.bodies}
        assert (asked["For a."]["temperature"], asked["For a."]["max_tokens"]) == (0, 5)
        assert (asked["For c."]["temperature"], asked["For c."]["max_tokens"]) == (1.5, 50)

    def test_jsonl_and_errors_apart(self, installation: Installation) -> None:
        rows = [{"input": "good"}, {"input": "refuse"}, {"input": 7}]
        file_id = installation.upload(as_jsonl(rows), "rows.jsonl", "user_data")
        job = installation.ended(submitted(installation, input_file=file_id, prompt="{input}"))
        assert job["result"]["failed"] == 1
        files = job["result"]["files"]
        answers = installation.lines(files["answers.jsonl"])
        assert [(row["row"], row["key"], row["answer"]) for row in answers] == [
            (1, "1", "So: good"), (3, "3", "So: 7"),
        ]  # fmt: skip
        [error] = installation.lines(files["errors.jsonl"])
        assert (error["row"], error["input"], error["error"]["message"]) == (
            2, {"input": "refuse"}, "That is refused.",
        )  # fmt: skip
        assert installation.oracle.most_at_once <= CONCURRENCY

    def test_parquet(self, installation: Installation) -> None:
        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"input": ["one", "two"]}), out)
        file_id = installation.upload(out.getvalue(), "rows.parquet", "user_data")
        job = installation.ended(submitted(installation, input_file=file_id, prompt="{input}"))
        answers = installation.lines(job["result"]["files"]["answers.jsonl"])
        assert [row["answer"] for row in answers] == ["So: one", "So: two"]


class TestRefusedAtOnce:
    @pytest.mark.parametrize(
        ("params", "param", "message"),
        [
            ({"prompt": "{question}"}, "prompt", "no column 'question'.*id, input, context, kwargs"),
            ({"prompt": "{input"}, "prompt", "write a brace that is meant as one twice"),
            ({"prompt": "input}"}, "prompt", "write a brace that is meant as one twice"),
            ({"prompt": '{"json": 1}'}, "prompt", "is no column"),
            ({"prompt": "{}"}, "prompt", "is no column"),
            ({"prompt": "{input:>9}"}, "prompt", "is no column"),
            ({"system_prompt": "{nobody}"}, "system_prompt", "no column 'nobody'"),
            ({"key_column": "number"}, "key_column", "no column 'number'"),
            ({"inference_kwargs_column": "more"}, "inference_kwargs_column", "no column 'more'"),
            ({"inference_kwargs": {"temperature": 9}}, "inference_kwargs.temperature", "at most 5"),
            ({"inference_kwargs": {"tempratur": 1}}, "inference_kwargs.tempratur", "Did you mean"),
            ({"inference_kwargs": {"response_format": DEEP}}, "inference_kwargs", "deeper than 100"),
            ({"model": "nobody"}, "model", "nobody"),
            ({"input_source": "tickets"}, "input_file", "exactly one of the two"),
            ({"output_target": "nowhere"}, "output_target", "there is no target 'nowhere'"),
            ({"concurrency": 0}, "concurrency", "at least 1"),
        ],
    )
    def test_bad_params(
        self, installation: Installation, params: dict[str, Any], param: str, message: str
    ) -> None:
        file_id = installation.upload(as_csv(ROWS), "rows.csv", "user_data")
        refused = submit(installation, **{"input_file": file_id, "prompt": "{input}", **params})
        assert refused.status_code == 400, refused.text
        error = error_of(refused)
        assert error["param"] == param
        assert re.search(message, error["message"]), error["message"]


class TestRefusedBeforeTheFirstQuestion:
    def test_rows_that_cannot_be_asked_are_named(self, installation: Installation) -> None:
        rows = [
            {"id": 1, "input": "x", "kwargs": None},
            {"id": 1, "input": "x", "kwargs": None},
            {"id": 2, "input": None, "kwargs": None},
            {"id": 3, "input": "x", "kwargs": "{no json"},
            {"id": 4, "input": "x", "kwargs": {"top_p": 2}},
            {"id": "5" * 513, "input": "x", "kwargs": None},
        ]
        file_id = installation.upload(as_jsonl(rows), "rows.jsonl", "user_data")
        made = submitted(
            installation,
            input_file=file_id,
            prompt="{input}",
            key_column="id",
            inference_kwargs_column="kwargs",
        )
        job = installation.ended(made)
        assert job["status"] == "failed"
        assert [(row["line"], row["code"]) for row in job["error"]["problems"]] == [
            (2, "duplicate_key"),
            (3, "missing_value"),
            (4, "bad_inference_kwargs"),
            (5, "bad_inference_kwargs"),
            (6, "key_too_long"),
        ]
        assert not installation.oracle.asked
