"""Submitting evaluations: what is refused at once, and that all files are held from the answer on."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from db.models import ModelVersion, Step
from db.queries.jobs import get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.sources import source_folder
from serving.removal import remove_served
from serving.served_adapters import BaseFile, put_beside
from tests.api.conftest import Publish, error_of, upload
from tests.api.serving import serving
from tests.api.test_pushing import publish_trained, push
from tests.trainings import Training


def evaluate(api: httpx.Client, **params: Any) -> httpx.Response:
    return api.post("/v1/jobs", json={"kind": "evaluate", "params": params})


def hold_out(training: Training, **rows: int) -> None:
    with transaction(training.sessions) as session:
        session.query(Step).filter(Step.job_id == training.job_id, Step.name == "prepare").update(
            {"result": {"rows": {"train": 8, "validation": 0, "test": 0, **rows}}}
        )


class TestSubmit:
    def test_weights_rows_and_files_of_a_model_are_held(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish_trained(publish, training, session_factory, "measured")
        hold_out(training, validation=2, test=3)
        answer = evaluate(api, model="measured", quantizations=["Q8_0"])
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert [(step["name"], step["queue"]) for step in job["steps"]] == [("evaluate", "gpu")]
        shutil.rmtree(training.folder("train"))
        shutil.rmtree(training.folder("prepare"))
        source = source_folder(training.root, job["id"])
        about = json.loads((source / "source.json").read_text())["about"]
        assert (about["model"], about["split"]) == ("measured@1", "test")
        assert about["quantized"] == {"Q8_0": "gguf/measured-1-q8_0.gguf"}
        assert (source / about["quantized"]["Q8_0"]).is_file()
        assert (source / "rows" / "test.jsonl").read_text() == "rows of test"
        assert (source / "trained" / "adapter_model.safetensors").read_text() == "final"
        with session_factory() as session:
            base = get_job(session, job["id"], project_id="default").base
        assert base is not None
        assert base["name"] == "org/base"

    def test_of_an_adapter_the_base_s_file_is_held_too(
        self,
        api: httpx.Client,
        training: Training,
        publish: Publish,
        settings: Settings,
        session_factory: SessionFactory,
    ) -> None:
        publish_trained(publish, training, session_factory, "beside")
        hold_out(training, test=3)
        (training.root / "base.gguf").write_bytes(b"GGUF of the base")
        sha256 = hashlib.sha256(b"GGUF of the base").hexdigest()
        put_beside(settings.served_models_dir, "beside-1-q8_0", BaseFile(training.root / "base.gguf", sha256))
        with transaction(session_factory) as session:
            version = session.query(ModelVersion).filter_by(job_id=training.job_id).one()
            bases = {"Q8_0": {"bytes": 16, "sha256": sha256}}
            version.details = {**version.details, "published_as": "adapter", "bases": bases}
        job = evaluate(api, model="beside", quantizations=["Q8_0"]).json()
        source = source_folder(training.root, job["id"])
        about = json.loads((source / "source.json").read_text())["about"]
        assert (source / about["bases"]["Q8_0"]).read_bytes() == b"GGUF of the base"
        refused = push(api, model="beside", what="gguf")
        assert "published as an adapter beside its base" in error_of(refused)["message"]
        remove_served(settings, "llama_server", "beside-1-q8_0")
        gone = evaluate(api, model="beside", quantizations=["Q8_0"])
        assert error_of(gone)["code"] == "source_gone"

    def test_validation_rows_stand_in_for_those_of_a_test(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish_trained(publish, training, session_factory, "validated")
        hold_out(training, validation=2)
        job = evaluate(api, model="validated").json()
        described = json.loads((source_folder(training.root, job["id"]) / "source.json").read_text())
        assert described["about"]["split"] == "validation"
        refused = error_of(evaluate(api, model="validated", split="test"))
        assert (refused["param"], refused["code"]) == ("input_file", "no_held_out_rows")


class TestRefused:
    @pytest.fixture
    def model(self, training: Training, publish: Publish, session_factory: SessionFactory) -> str:
        publish_trained(publish, training, session_factory, "refused")
        return "refused"

    @pytest.mark.parametrize(
        ("params", "param", "message"),
        [
            ({"model": "nobody"}, "model", "There is no model"),
            ({"model": "refused:Q8_0"}, "model", "without a quantization"),
            ({}, "input_file", "train_size below 1"),
            ({"input_file": "file-0"}, "input_file", "file-0"),
            ({"quantizations": ["Q4_K_M", "Q4_K_M"]}, "quantizations", "twice"),
            ({"metrics": []}, "metrics", "nothing to measure"),
            ({"metrics": ["bleu"]}, "metrics", "exact_match"),
            ({"metrics": ["loss", "loss"]}, "metrics", "twice"),
            ({"metrics": [], "tasks": ["mmlu"]}, "tasks", "LATHE_EVAL_TASKS"),
            ({"tasks": ["../x"]}, "tasks", "must match"),
            ({"task_rows": 5}, "task_rows", "goes with tasks"),
            ({"input_file": "file-0", "split": "test"}, "split", "leave it out"),
        ],
    )
    def test_names_the_field_that_is_wrong(
        self, api: httpx.Client, model: str, params: dict[str, Any], param: str, message: str
    ) -> None:
        answer = evaluate(api, **{"model": model, **params})
        assert answer.status_code == 400, answer.text
        error = error_of(answer)
        assert param in str(error["param"] or error["message"])
        assert message in error["message"]

    def test_a_file_that_is_not_published(self, api: httpx.Client, model: str) -> None:
        refused = evaluate(api, model=model, input_file=upload(api), quantizations=["Q2_K"])
        assert error_of(refused)["param"] == "quantizations"
        assert "It is as: Q4_K_M, Q8_0" in error_of(refused)["message"]

    def test_a_file_without_answers(self, api: httpx.Client, model: str) -> None:
        file_id = upload(api, b"colour,shape\nred,round\n")
        error = error_of(evaluate(api, model=model, input_file=file_id))
        assert error["param"] == "input_file"

    def test_a_task_that_the_operator_does_not_have(
        self, settings: Settings, model: str, tmp_path: Path
    ) -> None:
        from api.app import create_app

        (tmp_path / "capitals.yaml").write_text("task: capitals\n")
        changed = Settings.model_validate({**settings.model_dump(), "eval_tasks": tmp_path})
        with (
            serving(create_app(changed)) as url,
            httpx.Client(base_url=url, timeout=20, trust_env=False) as client,
        ):
            refused = error_of(evaluate(client, model=model, metrics=[], tasks=["capitals", "mmlu"]))
            taken = evaluate(client, model=model, metrics=[], tasks=["capitals"])
        assert "There is no mmlu. There are: capitals" in refused["message"].replace("there is", "There is")
        assert taken.status_code == 202, taken.text
