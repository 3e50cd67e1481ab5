"""Checkpoints over HTTP: listed, exported while nothing may take them away, and chatted with by their id."""

import json
import shutil
from typing import Any

import httpx
import pytest

from db.models import ModelVersion
from db.queries.jobs import get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.source_files import check_source
from db.sources import source_folder
from db.states import JobStatus, StepStatus
from db.storage import job_folder
from tests.api.conftest import Publish, error_of, submit, upload
from tests.api.model_server import ModelServer
from tests.api.test_jobs import end
from tests.trainings import Training, in_training, listed


def export(api: httpx.Client, **params: Any) -> httpx.Response:
    return api.post("/v1/jobs", json={"kind": "export", "params": params})


def mark_exported(publish: Publish, sessions: SessionFactory, checkpoint: str, name: str) -> str:
    backend_name = publish(name)
    with transaction(sessions) as session:
        version = session.query(ModelVersion).order_by(ModelVersion.created_at.desc()).first()
        assert version is not None
        version.checkpoint_id = checkpoint
    return backend_name


class TestList:
    def test_shows_newest_first_with_size_and_metrics_in_pages(
        self, api: httpx.Client, training: Training
    ) -> None:
        older, newer = training.checkpoint(10), training.checkpoint(20)
        first = api.get(f"/v1/jobs/{training.job_id}/checkpoints", params={"limit": 1}).json()
        assert first["object"] == "list"
        assert first["has_more"]
        assert [row["id"] for row in first["data"]] == [newer]
        row = first["data"][0]
        assert isinstance(row.pop("created_at"), int)
        assert row == {
            "id": newer,
            "object": "job.checkpoint",
            "job_id": training.job_id,
            "step": "train",
            "attempt": 1,
            "step_number": 20,
            "metrics": {"epoch": 1.0, "loss": 2.5},
            "bytes": 1234,
            "exported_as": None,
        }
        second = api.get(f"/v1/jobs/{training.job_id}/checkpoints", params={"after": first["last_id"]}).json()
        assert [row["id"] for row in second["data"]] == [older]
        assert not second["has_more"]

    def test_of_an_unknown_job_is_404(self, api: httpx.Client) -> None:
        assert api.get("/v1/jobs/job-0/checkpoints").status_code == 404


class TestExport:
    def test_of_all_weights_holds_the_whole_model(
        self, api: httpx.Client, settings: Settings, session_factory: SessionFactory
    ) -> None:
        job_id = submit(api, tuning="full")["id"]
        training = in_training(job_id, settings.storage_root, session_factory)
        checkpoint = training.checkpoint(20, "model.safetensors", "config.json")
        exported = export(api, checkpoint=checkpoint)
        assert exported.status_code == 202, exported.text
        source = source_folder(settings.storage_root, exported.json()["id"])
        assert check_source(source)["adapter"] is False
        assert {path.name for path in (source / "trained").iterdir()} == {
            "model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja",
        }  # fmt: skip

    def test_holds_what_it_needs_against_everything(
        self, api: httpx.Client, training: Training, session_factory: SessionFactory
    ) -> None:
        checkpoint = training.checkpoint(20)
        answer = export(api, checkpoint=checkpoint, quantizations=["Q8_0"])
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert [step["name"] for step in job["steps"]] == ["export", "verify", "publish"]
        assert job["steps"][0]["status"] == "queued"
        assert job["params"] == {
            "checkpoint": checkpoint, "job": None, "name": "faq-step-20", "quantizations": ["Q8_0"],
            "imatrix": False, "publish": "merged",
        }  # fmt: skip
        # The training removes it, and the job is deleted.
        shutil.rmtree(training.checkpoint_folder(20))
        end(session_factory, training.job_id, JobStatus.CANCELLED)
        assert api.delete(f"/v1/jobs/{training.job_id}").status_code == 200
        assert not job_folder(training.root, training.job_id).exists()
        source = source_folder(training.root, job["id"])
        about = check_source(source)
        assert (about["checkpoint"], about["step_number"], about["kind"]) == (checkpoint, 20, "fine_tune")
        assert (source / "trained" / "adapter_model.safetensors").read_text() == "weights of step 20"
        assert sorted(path.name for path in (source / "trained").iterdir()) == [
            "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json",
        ]  # fmt: skip
        assert (source / "rows" / "test.jsonl").read_text() == "rows of test"
        with session_factory() as session:
            export_job = get_job(session, job["id"], project_id="default")
            assert export_job.base is not None
            assert export_job.base["name"] == "org/base"

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (
                '{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none", "use_dora": true}',
                "DoRA",
            ),
            ('{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "all"}', "lora_bias trains"),
            (
                '{"r": 8, "lora_alpha": 16, "target_modules": ["embed_tokens"], "bias": "none"}',
                "embed_tokens",
            ),
        ],
    )
    def test_what_only_merging_can_do_is_not_published_as_an_adapter(
        self, api: httpx.Client, training: Training, config: str, message: str
    ) -> None:
        checkpoint = training.checkpoint(20, config=config)
        error = error_of(export(api, checkpoint=checkpoint, publish="adapter"))
        assert (error["param"], message in error["message"]) == ("publish", True)
        assert export(api, checkpoint=checkpoint).status_code == 202

    def test_costs_no_second_copy(self, api: httpx.Client, training: Training) -> None:
        job = export(api, checkpoint=training.checkpoint(20)).json()
        held = source_folder(training.root, job["id"]) / "trained" / "adapter_model.safetensors"
        assert held.samefile(training.checkpoint_folder(20) / "adapter_model.safetensors")

    def test_of_a_job_takes_its_adapter_and_its_name(
        self, api: httpx.Client, training: Training, session_factory: SessionFactory
    ) -> None:
        training.write(
            "train", {"adapter/adapter_model.safetensors": "final", "adapter/tokenizer.json": "{}"}
        )
        listed(training.folder("train"), "manifest.json")
        refused = export(api, job=training.job_id)
        assert refused.status_code == 409
        assert error_of(refused)["code"] == "training_not_done"
        with transaction(session_factory) as session:
            steps = get_job(session, training.job_id, project_id="default").steps
            train = next(step for step in steps if step.name == "train")
            for status in (StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.SUCCEEDED):
                train.status = status
                session.flush()
            train.succeeded_attempt = 1
        job = export(api, job=training.job_id).json()
        assert job["params"]["name"] == "faq"
        held = source_folder(training.root, job["id"]) / "trained"
        assert (held / "adapter_model.safetensors").read_text() == "final"
        assert (held / "tokenizer.json").is_file()

    def test_is_refused_whole_when_the_files_went_first(self, api: httpx.Client, training: Training) -> None:
        checkpoint = training.checkpoint(20)
        (training.checkpoint_folder(20) / "adapter_model.safetensors").unlink()
        before = set((training.root / "jobs").iterdir())
        answer = export(api, checkpoint=checkpoint)
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "source_gone"
        assert set((training.root / "jobs").iterdir()) == before
        exports = api.get("/v1/jobs", params={"kind": "export", "limit": 100}).json()["data"]
        assert checkpoint not in [job["params"]["checkpoint"] for job in exports]

    def test_a_long_name_is_cut_to_a_legal_one(self, api: httpx.Client, training: Training) -> None:
        with transaction(training.sessions) as session:
            job = get_job(session, training.job_id, project_id="default")
            job.params = {**job.params, "name": "a" * 63}
        job = export(api, checkpoint=training.checkpoint(20)).json()
        assert job["params"]["name"] == "a" * 55 + "-step-20"

    @pytest.mark.parametrize(
        ("params", "param", "message"),
        [
            ({}, "checkpoint", "exactly one"),
            ({"checkpoint": "checkpoint-" + "0" * 32, "job": "job-0"}, "checkpoint", "exactly one"),
            ({"checkpoint": "checkpoint-" + "0" * 32}, "checkpoint", "there is no"),
            ({"checkpoint": "faq"}, "checkpoint", "id of a checkpoint"),
            ({"job": "job-0"}, "job", "no job"),
            ({"job": "job-0", "quantizations": ["Q8_0", "Q8_0"]}, "quantizations", "twice"),
        ],
    )
    def test_refuses_what_names_nothing(
        self, api: httpx.Client, params: dict[str, Any], param: str, message: str
    ) -> None:
        answer = export(api, **params)
        assert answer.status_code == 400, answer.text
        error = error_of(answer)
        assert error["param"] == param
        assert message in error["message"]

    @pytest.mark.parametrize("name", ["tiny", "default", "checkpoint-" + "0" * 32])
    def test_refuses_names_that_mean_something_else(
        self, api: httpx.Client, training: Training, name: str
    ) -> None:
        answer = export(api, checkpoint=training.checkpoint(20), name=name)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == "name"

    def test_a_base_that_an_export_needs_cannot_be_deleted(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        name = f"base-{training.job_id[-8:]}"
        weights = training.root / "jobs" / "job-base" / "model"
        weights.mkdir(parents=True, exist_ok=True)
        publish(name, weights="jobs/job-base/model")
        with transaction(session_factory) as session:
            get_job(session, training.job_id, project_id="default").base = {
                "name": f"{name}@1", "source": "storage", "location": "jobs/job-base/model", "revision": None,
            }  # fmt: skip
        job = export(api, checkpoint=training.checkpoint(20)).json()
        end(session_factory, training.job_id, JobStatus.CANCELLED)
        answer = api.delete(f"/v1/models/{name}")
        assert answer.status_code == 409
        assert job["id"] in error_of(answer)["message"]

    def test_a_model_from_scratch_is_held_with_its_text(
        self, api: httpx.Client, settings: Settings, session_factory: SessionFactory
    ) -> None:
        text = b"Clay. " * 1000
        file_id = upload(api, text, "book.txt")
        params = {"name": "pots", "training_file": file_id}
        pretrain = api.post("/v1/jobs", json={"kind": "pretrain", "params": params}).json()
        made = Training(pretrain["id"], settings.storage_root, session_factory)
        name = "checkpoints/checkpoint-7"
        files = {"model.safetensors": "w", "config.json": "{}", "tokenizer/tokenizer.json": "{}"}
        made.write("train", {f"{name}/{file}": content for file, content in files.items()})
        listed(made.folder("train") / name, "checkpoint.json")
        checkpoint = made.checkpoint(7)
        job = export(api, checkpoint=checkpoint).json()
        source = source_folder(settings.storage_root, job["id"])
        assert (source / "text").read_bytes() == text
        assert {path.name for path in (source / "trained").iterdir()} == {
            "model.safetensors", "config.json", "tokenizer.json",
        }  # fmt: skip
        assert check_source(source)["kind"] == "pretrain"


class TestChat:
    def ask(self, api: httpx.Client, model: str) -> httpx.Response:
        return api.post(
            "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        )

    def test_says_how_to_export_a_checkpoint(self, api: httpx.Client, training: Training) -> None:
        checkpoint = training.checkpoint(20)
        answer = self.ask(api, checkpoint)
        assert answer.status_code == 404
        error = error_of(answer)
        assert error["code"] == "checkpoint_not_exported"
        assert f"lathe export {checkpoint} --watch" in error["message"]
        # What it says to send is what the API takes.
        body = json.loads(error["message"].partition("POST /v1/jobs with ")[2].rstrip("."))
        job = api.post("/v1/jobs", json=body)
        assert job.status_code == 202
        assert job.json()["id"] in error_of(self.ask(api, checkpoint))["message"]

    def test_answers_from_the_newest_model_exported_from_it(
        self,
        api: httpx.Client,
        training: Training,
        publish: Publish,
        session_factory: SessionFactory,
        backend: tuple[ModelServer, str],
    ) -> None:
        checkpoint = training.checkpoint(20)
        mark_exported(publish, session_factory, checkpoint, "early")
        backend_name = mark_exported(publish, session_factory, checkpoint, "early")
        answer = self.ask(api, checkpoint)
        assert answer.status_code == 200, answer.text
        assert json.loads(backend[0].bodies[-1])["model"] == backend_name
        assert self.ask(api, f"{checkpoint}:Q4_K_M").status_code == 200
        assert self.ask(api, f"{checkpoint}:Q8_0").status_code == 404
        shown = api.get(f"/v1/models/{checkpoint}").json()
        assert (shown["name"], shown["version"]) == ("early", 2)
        rows = api.get(f"/v1/jobs/{training.job_id}/checkpoints").json()["data"]
        assert rows[0]["exported_as"] == "early@2"

    def test_an_unknown_id_lists_the_models(self, api: httpx.Client) -> None:
        answer = self.ask(api, "checkpoint-" + "0" * 32)
        assert answer.status_code == 404
        assert "There are: " in error_of(answer)["message"]
