"""Submitting pushes: what is refused at once, and that the files are held from the moment of the answer."""

import hashlib
import json
import shutil
from typing import Any

import httpx
import pytest

from db.models import Artifact, ModelVersion
from db.queries.jobs import get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.source_files import check_source
from db.sources import source_folder
from db.states import StepStatus
from tests.api.conftest import Publish, error_of
from tests.api.serving import serving
from tests.trainings import Training, listed


def push(api: httpx.Client, **params: Any) -> httpx.Response:
    return api.post("/v1/jobs", json={"kind": "push", "params": {"repository": "org/faq", **params}})


def publish_trained(publish: Publish, training: Training, sessions: SessionFactory, name: str) -> None:
    """A model whose training's adapter, and one of whose files, lie where a job has left them."""
    training.write("train", {"adapter/adapter_model.safetensors": "final", "adapter/tokenizer.json": "{}"})
    listed(training.folder("train"), "manifest.json")
    publish(name, quantizations=("Q4_K_M", "Q8_0"))
    with transaction(sessions) as session:
        steps = get_job(session, training.job_id, project_id="default").steps
        train = next(step for step in steps if step.name == "train")
        for status in (StepStatus.QUEUED, StepStatus.RUNNING, StepStatus.SUCCEEDED):
            train.status = status
            session.flush()
        train.succeeded_attempt = 1
        train.result = {"hyperparameters": {"learning_rate": 1e-4}, "eval_loss": 1.5, "device": "cpu"}
        version = session.query(ModelVersion).order_by(ModelVersion.created_at.desc()).first()
        assert version is not None
        version.job_id = training.job_id
        version.details = {"kind": "fine_tune"}


def leave_for_a_card(training: Training, sessions: SessionFactory) -> None:
    """A recipe, and curves that have gone."""
    training.write("publish", {"recipe.json": "recipe"})
    folder = training.folder("publish").relative_to(training.root)
    with transaction(sessions) as session:
        for name in ("recipe.json", "curves.png"):
            session.add(
                Artifact(
                    job_id=training.job_id,
                    step="publish",
                    attempt=1,
                    name=name,
                    path=str(folder / name),
                    bytes=6,
                    sha256=hashlib.sha256(b"recipe").hexdigest(),
                )
            )


class TestSubmit:
    def test_the_adapter_of_a_model_is_held_with_what_is_known_of_it(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish_trained(publish, training, session_factory, "pushed")
        leave_for_a_card(training, session_factory)
        answer = push(api, model="pushed")
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert [(step["name"], step["queue"]) for step in job["steps"]] == [("push", "bulk")]
        assert (job["params"]["what"], job["params"]["private"]) == ("adapter", True)
        shutil.rmtree(training.folder("train"))
        shutil.rmtree(training.folder("publish"))
        source = source_folder(training.root, job["id"])
        about = check_source(source)
        assert (source / "trained" / "adapter_model.safetensors").read_text() == "final"
        assert (source / "card" / "recipe.json").read_text() == "recipe"
        assert not (source / "card" / "curves.png").exists()  # it was there once
        assert not (source / "rows").exists()  # nobody's data goes with it
        assert about["trained"] == {"hyperparameters": {"learning_rate": 1e-4}, "eval_loss": 1.5}
        assert (about["model"], about["base"]["name"]) == ("pushed@1", "org/base")

    def test_gguf_files_from_where_they_are_served(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish_trained(publish, training, session_factory, "ggufs")
        job = push(api, model="ggufs", what="gguf", quantizations=["Q8_0"]).json()
        [held] = (source_folder(training.root, job["id"]) / "gguf").iterdir()
        assert held.name == "ggufs-1-q8_0.gguf"
        refused = error_of(push(api, model="ggufs", what="gguf", quantizations=["Q2_K"]))
        assert refused["param"] == "quantizations"
        assert "It is as: Q4_K_M, Q8_0" in refused["message"]

    def test_a_model_made_from_another_has_its_files_and_says_what_is_not_in_them(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish_trained(publish, training, session_factory, "root")
        made = api.post("/v1/models", json={"name": "derived", "from": "root", "system": "Be brief."})
        assert made.status_code == 201, made.text
        job = push(api, model="derived").json()
        source = source_folder(training.root, job["id"])
        assert (source / "trained" / "adapter_model.safetensors").is_file()
        assert json.loads((source / "source.json").read_text())["about"]["prompted"] is True

    def test_a_checkpoint(self, api: httpx.Client, training: Training) -> None:
        job = push(api, checkpoint=training.checkpoint(20)).json()
        source = source_folder(training.root, job["id"])
        assert (source / "trained" / "adapter_model.safetensors").read_text() == "weights of step 20"
        assert check_source(source)["step_number"] == 20

    def test_a_model_whose_job_is_gone_can_go_as_gguf(self, api: httpx.Client, publish: Publish) -> None:
        publish("orphan")
        refused = push(api, model="orphan")
        assert (refused.status_code, error_of(refused)["code"]) == (409, "source_gone")
        assert push(api, model="orphan", what="gguf").status_code == 202


class TestRefused:
    @pytest.mark.parametrize(
        ("params", "param"),
        [
            ({}, "model"),
            ({"model": "faq", "job": "job-0"}, "model"),
            ({"model": "nobody"}, "model"),
            ({"job": "job-0"}, "job"),
            ({"checkpoint": "checkpoint-" + "0" * 32}, "checkpoint"),
            ({"model": "faq", "repository": "../x"}, "repository"),
            ({"model": "faq", "quantizations": ["Q8_0"]}, "quantizations"),
            ({"model": "faq", "token": "hf_x"}, "token"),
            ({"model": "faq", "branch": "../x"}, "branch"),
        ],
    )
    def test_names_the_field_that_is_wrong(
        self, api: httpx.Client, params: dict[str, Any], param: str
    ) -> None:
        answer = push(api, **params)
        assert answer.status_code == 400, answer.text
        assert param in str(error_of(answer)["param"] or error_of(answer)["message"])

    def test_what_is_not_there_to_push(
        self, api: httpx.Client, training: Training, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish_trained(publish, training, session_factory, "mine")
        assert error_of(push(api, model="mine:Q8_0"))["param"] == "model"
        unpublished = error_of(push(api, checkpoint=training.checkpoint(10), what="gguf"))
        assert (unpublished["param"], "Export it first" in unpublished["message"]) == ("what", True)

    @pytest.mark.parametrize(
        ("changed", "said"),
        [({"hub_offline": True}, "LATHE_HUB_OFFLINE"), ({"hub_push_to": ["us"]}, "pushes to us only")],
    )
    def test_where_the_operator_lets_nothing_go(
        self, settings: Settings, publish: Publish, changed: dict[str, Any], said: str
    ) -> None:
        from api.app import create_app

        publish("kept")
        with (
            serving(create_app(Settings.model_validate({**settings.model_dump(), **changed}))) as url,
            httpx.Client(base_url=url, timeout=20, trust_env=False) as client,
        ):
            error = error_of(push(client, model="kept"))
        assert (error["param"], said in error["message"]) == ("repository", True)
