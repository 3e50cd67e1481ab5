"""What is wrong is refused with the field and the fix, and nothing is queued."""

import difflib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import func, select

from api.jobs.schemas import REQUESTS
from api.security import MAX_FIELDS
from api.validation import SHOWN_AT_ONCE, explain
from db.models import Job
from db.session import SessionFactory, transaction
from tests.api.conftest import error_of, upload

FILE = "file-0123"


@pytest.fixture(autouse=True)
def _nothing_is_queued(session_factory: SessionFactory) -> Iterator[None]:
    def count() -> int:
        with transaction(session_factory) as session:
            return session.scalars(select(func.count()).select_from(Job)).one()

    before = count()
    yield
    assert count() == before


def refused(api: httpx.Client, *, kind: str = "fine_tune", **changes: Any) -> dict[str, Any]:
    params = {"base_model": "org/base", "training_file": FILE, "name": "faq"} | changes
    answer = api.post("/v1/jobs", json={"kind": kind, "params": params})
    assert answer.status_code == 400, answer.text
    return error_of(answer)


PARAMS = [
    ({"learning_rate": -1}, "learning_rate", 'learning_rate must be greater than 0, or "auto".'),
    ({"learning_rate": "fast"}, "learning_rate", 'learning_rate must be a number, or "auto".'),
    ({"batch_size": 0}, "batch_size", 'batch_size must be at least 1, or "auto".'),
    ({"lora_dropout": 1}, "lora_dropout", 'lora_dropout must be less than 1, or "auto".'),
    ({"bits": 5}, "bits", 'bits must be 4, 8 or 16, or "auto".'),
    ({"tuning": "full", "bits": 4}, "bits", "weights rounded to 4 or 8 bits cannot be trained"),
    ({"tuning": "full", "publish": "adapter"}, "publish", "trains all weights, and no adapter"),
    ({"use_dora": True, "publish": "adapter"}, "publish", "DoRA scales the base's own weights"),
    ({"imatrix": True, "publish": "adapter"}, "publish", "is for all its adapters. Set publish to"),
    ({"bits": 8, "use_dora": True}, "use_dora", "set bits to 4 or 16, or leave use_dora out"),
    (
        {"training_args": {"output_dir": "/etc"}},
        "training_args.output_dir",
        "training_args.output_dir cannot be given: it names a file or a folder",
    ),
    (
        {"training_args": {"num_train_epochs": 3}},
        "training_args.num_train_epochs",
        "is set by the param epochs: give that",
    ),
    ({"quantizations": ["Q9_X"]}, "quantizations[0]", "quantizations[0] must be 'F16', 'BF16'"),
    ({"quantizations": []}, "quantizations", "quantizations must hold at least 1"),
    ({"quantizations": ["Q8_0", "Q8_0"]}, "quantizations", "quantizations names a type twice."),
    ({"name": "../../etc"}, "name", "name is lower-case letters, digits"),
    ({"name": "x" * 64}, "name", "at most 63 characters"),
    ({"name": "default"}, "name", "is the embedding model's"),
    ({"training_file": "../faq.csv"}, "training_file", "is the id of an uploaded file"),
    ({"training_file": None}, "training_file", "training_file is missing: give it, or one of training_files"),
    ({"learning_rat": 1}, "learning_rat", "There is no field learning_rat. Did you mean learning_rate?"),
    ({"num_train_epochs": 3}, "num_train_epochs", "There is no field num_train_epochs. Here it is epochs."),
    ({"weight_decay": 0.1}, "weight_decay", "weight_decay belongs inside training_args"),
    ({"zzz": 1}, "zzz", "There is no field zzz. There are: base_model, training_file"),
    ({"metadata": {}}, "metadata", "There is no field metadata"),
    ({"validation_file": FILE, "train_size": 0.5}, "validation_file", "exclude each other"),
    ({"early_stopping_patience": 2}, "early_stopping_patience", "needs validation rows"),
    ({"seed": 2**80}, "seed", "seed"),
    ({"epochs": [1]}, "epochs", "epochs must be a number"),
]


class TestParams:
    @pytest.mark.parametrize(("changes", "param", "message"), PARAMS, ids=lambda value: str(value)[:24])
    def test_names_the_field_and_the_fix(
        self, api: httpx.Client, changes: dict[str, Any], param: str, message: str
    ) -> None:
        error = refused(api, **changes)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert message in error["message"]

    def test_several_at_once(self, api: httpx.Client) -> None:
        error = refused(api, learning_rate=-1, epochs=-1, lora_rank=0, batch_size=-2)
        assert error["message"].count(";") == 3
        assert error["message"].endswith("and 1 more.")

    def test_missing_fields(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs", json={"kind": "fine_tune", "params": {}})
        assert error_of(answer)["message"] == "base_model is missing; name is missing."

    def test_characters_that_no_database_takes(self, api: httpx.Client) -> None:
        for text in ("a\0b", "\ud800"):
            body = '{"kind":"pretrain","params":{"name":"p","sample_prompt":%s}}' % (
                '"a\\u0000b"' if text == "a\0b" else '"\\ud800"'
            )
            answer = api.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, answer.text
            assert error_of(answer)["param"] == "sample_prompt"

    def test_rules_of_pretraining(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": "p", "heads": 3}})
        assert error_of(answer)["message"] == "heads must divide hidden_size 256."
        assert error_of(answer)["param"] == "heads"


class TestRequest:
    def test_unknown_kind(self, api: httpx.Client) -> None:
        error = refused(api, kind="distill")
        assert error["param"] == "kind"
        assert "'fine_tune', 'pretrain'" in error["message"]

    def test_no_kind(self, api: httpx.Client) -> None:
        error = error_of(api.post("/v1/jobs", json={"params": {}}))
        assert (error["param"], error["message"]) == ("kind", "kind is missing.")

    @pytest.mark.parametrize(
        ("value", "rule"),
        [(0, "at least 1"), (1.5, "a whole number"), ("2h", "a whole number"), (10**9, "at most")],
    )
    def test_a_limit_that_is_none(self, api: httpx.Client, value: object, rule: str) -> None:
        body = {"kind": "pretrain", "params": {"name": "p"}, "max_runtime_seconds": value}
        error = error_of(api.post("/v1/jobs", json=body))
        assert error["param"] == "max_runtime_seconds"
        assert rule in error["message"]

    def test_a_param_outside_of_params(self, api: httpx.Client) -> None:
        body = {"kind": "pretrain", "params": {"name": "p"}, "learning_rate": 1}
        assert error_of(api.post("/v1/jobs", json=body))["message"] == "learning_rate belongs inside params."

    @pytest.mark.parametrize("body", ["{", "", "nope", '{"kind": "pretrain",}', "[" * 100_000])
    def test_malformed_json(self, api: httpx.Client, body: str) -> None:
        answer = api.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        error_of(answer)

    @pytest.mark.parametrize("body", ["[]", "1", '"x"', "null"])
    def test_json_that_is_no_object(self, api: httpx.Client, body: str) -> None:
        answer = api.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert "the body must be an object" in error_of(answer)["message"]

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
    def test_wrong_content_type(self, api: httpx.Client, kind: str | None) -> None:
        headers = {"content-type": kind} if kind else {}
        answer = api.post("/v1/jobs", content=b'{"kind":"pretrain"}', headers=headers)
        assert answer.status_code == 415
        assert "takes content-type application/json" in error_of(answer)["message"]

    def test_a_form_without_a_body_changes_nothing(self, api: httpx.Client) -> None:
        headers = {"content-type": "application/x-www-form-urlencoded"}
        assert api.post("/v1/jobs/job-1/cancel", headers=headers).status_code == 415

    def test_a_body_over_the_limit(self, api: httpx.Client) -> None:
        body = b'{"kind": "' + b"x" * 300_000 + b'"}'
        headers = {"content-type": "application/json"}
        announced = api.post("/v1/jobs", content=body, headers=headers)
        chunked = api.post("/v1/jobs", content=iter([body]), headers=headers)
        for answer in (announced, chunked):
            assert answer.status_code == 413
            assert "LATHE_MAX_BODY_BYTES" in error_of(answer)["message"]

    def test_unknown_routes_and_methods(self, api: httpx.Client) -> None:
        unknown = api.get("/v1/nope")
        assert (unknown.status_code, error_of(unknown)["message"]) == (404, "There is no GET /v1/nope.")
        wrong = api.patch("/v1/jobs", json={})
        assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "GET, POST"

    @pytest.mark.parametrize("path", ["/v1/jobs/a%00b", "/v1/jobs?after=a%00b", "/v1/models/%00"])
    def test_nul_in_an_address(self, api: httpx.Client, path: str) -> None:
        assert api.get(path).status_code == 400

    def test_limits_of_pages(self, api: httpx.Client) -> None:
        assert error_of(api.get("/v1/jobs?limit=0"))["message"] == "limit must be at least 1."
        assert error_of(api.get("/v1/jobs?limit=x"))["message"] == "limit must be a whole number."


class TestFilesOfJobs:
    def test_an_unknown_file(self, api: httpx.Client) -> None:
        error = refused(api, training_file="file-00000000")
        assert error["param"] == "training_file"
        assert error["code"] == "file_not_found"
        assert "POST /v1/files" in error["message"]

    def test_a_csv_without_usable_columns(self, api: httpx.Client) -> None:
        file_id = upload(api, b"colour,taste\nred,sweet\n")
        error = refused(api, training_file=file_id)
        assert error["param"] == "training_file"
        assert "colour" in error["message"]

    def test_the_validation_file_is_checked_too(self, api: httpx.Client) -> None:
        file_id = upload(api, b"colour,taste\nred,sweet\n")
        assert refused(api, training_file=upload(api), validation_file=file_id)["param"] == "validation_file"

    def test_a_header_without_rows(self, api: httpx.Client) -> None:
        assert refused(api, training_file=upload(api, b"question,answer\n"))["param"] == "training_file"

    def test_an_unknown_base_lists_those_there_are(self, api: httpx.Client) -> None:
        error = refused(api, training_file=upload(api), base_model="nope")
        assert error["param"] == "base_model"
        assert "tiny" in error["message"]

    def test_a_base_that_is_a_path(self, api: httpx.Client) -> None:
        for base in ("/etc", "../x", "a/b/c", "file:///etc/passwd", "org/base@"):
            assert refused(api, training_file=upload(api), base_model=base)["param"] == "base_model"


def test_of_many_wrong_fields_only_those_that_are_shown_are_looked_into(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    look = difflib.get_close_matches

    def count(word: str, known: list[str], **options: Any) -> list[str]:
        asked.append(word)
        return look(word, known, **options)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    model = REQUESTS["pretrain"]
    many = {f"step{number}": 1 for number in range(1000)}
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"kind": "pretrain", "params": {"name": "m", **many}})
    rows = caught.value.errors()
    for row in rows:
        row["loc"] = ("body", *row["loc"])
    message, param, code = explain(rows, model)
    assert message.startswith("There is no field step0. Did you mean steps?; ")
    assert message.endswith("; and 997 more.")
    assert (param, code) == ("step0", "unknown_field")
    assert len(asked) == SHOWN_AT_ONCE


@pytest.mark.parametrize("inside", [True, False], ids=["params", "the body"])
def test_too_many_fields_are_refused_before_each_is_looked_at(api: httpx.Client, inside: bool) -> None:
    fields = {f"f{number}": 1 for number in range(MAX_FIELDS + 1)}
    body = {"kind": "fine_tune", "params": fields} if inside else fields
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "too_many_fields"
    assert f"has {MAX_FIELDS + 1} fields" in error["message"]


def test_as_many_fields_as_may_be_are_looked_at(api: httpx.Client) -> None:
    assert refused(api, **{f"f{number}": 1 for number in range(MAX_FIELDS - 3)})["code"] == "unknown_field"
