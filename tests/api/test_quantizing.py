"""Quantising a base over HTTP, and training on one: what is refused at once, and what is filled in."""

import json
from functools import partial
from typing import Any

import httpx
import pytest

from db.queries.jobs import end_job, get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.sources import source_folder
from db.states import JobKind, JobStatus, StepStatus
from tests.api.conftest import error_of, submit, upload
from tests.rows import add_job, add_version
from tests.trainings import in_training, listed

SHAPE = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "vocab_size": 320}
STORED = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.fixture(scope="module")
def models(settings: Settings, session_factory: SessionFactory) -> dict[str, str]:
    """A 16-bit model from scratch, one that was quantised from it, and the same of unknown origin."""
    add = partial(write, session_factory, settings)
    add("qb-whole", JobKind.PRETRAIN, {}, SHAPE)
    quantized = SHAPE | {"quantization_config": STORED}
    made_from = {"quantized_from": "qb-whole@1", "stored": {"method": "gptq", "bits": 4, "group_size": 32}}
    add("qb-gptq", JobKind.QUANTIZE, made_from, quantized)
    add("qb-foreign", JobKind.PULL, {}, quantized)
    return {"whole": "qb-whole", "gptq": "qb-gptq", "foreign": "qb-foreign"}


def write(  # noqa: PLR0917 - a row of a table
    sessions: SessionFactory,
    settings: Settings,
    name: str,
    kind: JobKind,
    details: dict[str, Any],
    config: dict[str, Any],
) -> None:
    with transaction(sessions) as session:
        job = add_job(session, kind=kind, params={"name": name, "base_model": "x"})
        weights = f"jobs/{job.id}/made/1/model"
        end_job(session, job, JobStatus.CANCELLED)
        add_version(session, name, weights=weights, details=details, job_id=job.id)
    folder = settings.storage_root / weights
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))


def fine_tune(api: httpx.Client, base: str, **params: Any) -> httpx.Response:
    given = {"base_model": base, "training_file": upload(api), "name": "on-gptq", **params}
    return api.post("/v1/jobs", json={"kind": "fine_tune", "params": given})


def quantize(api: httpx.Client, base: str, **params: Any) -> httpx.Response:
    given = {"base_model": base, "name": "smaller", **params}
    return api.post("/v1/jobs", json={"kind": "quantize", "params": given})


class TestFineTune:
    def test_on_what_was_quantised_here_knows_what_it_was_made_from(
        self, api: httpx.Client, models: dict[str, str]
    ) -> None:
        answer = fine_tune(api, models["gptq"])
        assert answer.status_code == 202, answer.text
        assert answer.json()["params"]["merge_base"] == "qb-whole@1"
        kept = api.delete("/v1/models/qb-whole")
        assert kept.status_code == 409
        assert "qb-whole@1" in error_of(kept)["message"]

    def test_on_a_foreign_one_needs_that_named(self, api: httpx.Client, models: dict[str, str]) -> None:
        refused = fine_tune(api, models["foreign"])
        assert refused.status_code == 400
        assert error_of(refused)["param"] == "merge_base"
        answer = fine_tune(api, models["foreign"], merge_base=models["whole"])
        assert answer.json()["params"]["merge_base"] == "qb-whole@1"

    @pytest.mark.parametrize(
        ("params", "field"),
        [
            ({"bits": 16}, "bits"),
            ({"tuning": "full"}, "tuning"),
            ({"use_dora": True}, "use_dora"),
            ({"merge_base": "qb-foreign"}, "merge_base"),
            ({"merge_base": "qb-nobody"}, "merge_base"),
        ],
    )
    def test_what_does_not_go_with_it_is_refused(
        self, api: httpx.Client, models: dict[str, str], params: dict[str, Any], field: str
    ) -> None:
        refused = fine_tune(api, models["gptq"], **params)
        assert refused.status_code == 400, refused.text
        assert error_of(refused)["param"] == field

    def test_on_16_bits_takes_no_merge_base(self, api: httpx.Client, models: dict[str, str]) -> None:
        refused = error_of(fine_tune(api, models["whole"], merge_base=models["whole"]))
        assert refused["param"] == "merge_base"
        assert "leave it out" in refused["message"]

    def test_on_a_hubs_is_looked_at_by_its_first_step(
        self, api: httpx.Client, models: dict[str, str]
    ) -> None:
        answer = fine_tune(api, "org/x-GPTQ", merge_base="org/x@main")
        assert answer.status_code == 202, answer.text
        assert answer.json()["params"]["merge_base"] == "org/x@main"


class TestModel:
    def test_is_listed_as_one_that_is_not_served(self, api: httpx.Client, models: dict[str, str]) -> None:
        shown = api.get("/v1/models/qb-gptq").json()
        assert (shown["status"], shown["versions"][0]["can_be_base"]) == ("not served", True)
        assert shown["versions"][0]["details"]["stored"] == {"method": "gptq", "bits": 4, "group_size": 32}

    def test_says_so_when_it_is_asked(self, api: httpx.Client, models: dict[str, str]) -> None:
        body = {"model": "qb-gptq", "messages": [{"role": "user", "content": "Hello"}]}
        refused = api.post("/v1/chat/completions", json=body)
        assert refused.status_code == 404
        assert error_of(refused)["code"] == "model_not_served"


class TestQuantize:
    def test_runs_where_there_is_a_device_and_is_measured(
        self, api: httpx.Client, models: dict[str, str]
    ) -> None:
        answer = quantize(api, models["whole"])
        assert answer.status_code == 202, answer.text
        job = answer.json()
        steps = [(step["name"], step["queue"]) for step in job["steps"]]
        assert steps == [("quantize", "train"), ("verify", "gpu"), ("publish", "io")]
        assert (job["params"]["bits"], job["params"]["group_size"]) == (4, 128)

    def test_holds_the_rows_that_a_model_has_learnt_from(
        self, api: httpx.Client, models: dict[str, str], settings: Settings, session_factory: SessionFactory
    ) -> None:
        training = in_training(submit(api, tuning="full")["id"], settings.storage_root, session_factory)
        training.write(
            "train", {"model/config.json": json.dumps(SHAPE), "model/model.safetensors": "weights"}
        )
        listed(training.folder("train"), "manifest.json")
        with transaction(session_factory) as session:
            for step in get_job(session, training.job_id, project_id="default").steps[:2]:
                for status in (StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.SUCCEEDED):
                    step.status = status
                    session.flush()
                step.succeeded_attempt = 1
            weights = f"jobs/{training.job_id}/train/1/model"
            add_version(session, "qb-learnt", weights=weights, job_id=training.job_id)
        answer = quantize(api, "qb-learnt")
        assert answer.status_code == 202, answer.text
        held = source_folder(settings.storage_root, answer.json()["id"])
        assert (held / "rows" / "train.jsonl").read_text() == "rows of train"
        assert not (held / "trained").exists()

    @pytest.mark.parametrize(
        ("base", "params", "field", "message"),
        [
            ("qb-gptq", {}, "base_model", "is quantised already"),
            ("org/model", {}, "input_file", "was not trained here"),
            ("qb-nobody", {}, "base_model", "There is no base model"),
            ("qb-whole", {"bits": 3}, "bits", "4 or 8"),
            ("qb-whole", {"group_size": 7}, "group_size", "32, 64 or 128"),
            ("qb-whole", {"input_file": "file-0"}, "input_file", "file-0"),
            ("qb-whole", {"name": "tiny"}, "name", "is a base model of this server"),
        ],
    )
    @pytest.mark.usefixtures("models")
    def test_bad_input_names_field_and_fix(
        self,
        api: httpx.Client,
        base: str,
        params: dict[str, Any],
        field: str,
        message: str,
    ) -> None:
        refused = quantize(api, base, **params)
        assert refused.status_code == 400, refused.text
        assert field in (error_of(refused)["param"] or "")
        assert message in error_of(refused)["message"]

    def test_a_file_of_text_will_do(self, api: httpx.Client, models: dict[str, str]) -> None:
        text = upload(api, b"A kiln is an oven for clay. It is heated slowly.\n\n" * 50, "kiln.txt")
        assert quantize(api, "org/model", input_file=text).status_code == 202
