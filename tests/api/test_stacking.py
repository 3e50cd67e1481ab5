"""`start_from` of a fine-tune over HTTP: what it may name, and that it is held."""

import json
import shutil
from typing import Any

import httpx
import pytest

from db.queries.jobs import get_job
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.source_files import check_source
from db.sources import start_folder
from tests.api.conftest import Publish, submit, upload
from tests.trainings import Training, in_training

CONFIG = {"r": 16, "lora_alpha": 32, "target_modules": ["v_proj", "q_proj"], "bias": "none"}


@pytest.fixture
def checkpoint(training: Training) -> str:
    return training.checkpoint(20, config=json.dumps(CONFIG))


def go_on(api: httpx.Client, start_from: str, **params: Any) -> httpx.Response:
    given = {"base_model": "org/base", "training_file": upload(api), "name": "further", **params}
    body = {"kind": "fine_tune", "params": {**given, "start_from": start_from}}
    return api.post("/v1/jobs", json=body)


class TestStart:
    def test_is_held_with_its_base_against_everything(
        self, api: httpx.Client, training: Training, checkpoint: str, session_factory: SessionFactory
    ) -> None:
        answer = go_on(api, checkpoint)
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        shutil.rmtree(training.checkpoint_folder(20))
        folder = start_folder(training.root, job_id)
        assert check_source(folder)["step_number"] == 20
        assert (folder / "trained" / "adapter_model.safetensors").read_text() == "weights of step 20"
        assert not (folder / "rows").exists()
        with transaction(session_factory) as session:
            base = get_job(session, job_id, project_id="default").base
        assert base is not None
        assert base["location"] == "org/base"

    def test_may_be_asked_for_with_what_the_adapter_has(self, api: httpx.Client, checkpoint: str) -> None:
        same = {"lora_rank": 16, "lora_target_modules": ["q_proj", "v_proj"]}
        assert go_on(api, checkpoint, **same).status_code == 202

    @pytest.mark.parametrize(
        ("params", "field", "message"),
        [
            ({"lora_rank": 8}, "lora_rank", "has 16, and training goes on with it as it is. Leave lora_rank"),
            ({"use_dora": True}, "use_dora", "has False"),
            ({"base_model": "org/other"}, "base_model", "was trained on org/base, and goes with no other"),
        ],
    )
    def test_of_another_form_or_base_is_refused(
        self, api: httpx.Client, checkpoint: str, params: dict[str, Any], field: str, message: str
    ) -> None:
        answer = go_on(api, checkpoint, **params)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
        assert message in answer.json()["error"]["message"]

    def test_of_all_weights_needs_all_weights_to_be_trained(
        self, api: httpx.Client, settings: Settings, session_factory: SessionFactory
    ) -> None:
        training = in_training(submit(api, tuning="full")["id"], settings.storage_root, session_factory)
        checkpoint = training.checkpoint(20, "model.safetensors", "config.json")
        refused = go_on(api, checkpoint)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "start_from"
        assert "name the model as base_model" in refused.json()["error"]["message"]
        assert go_on(api, checkpoint, tuning="full").status_code == 202

    @pytest.mark.parametrize("reference", ["nobody", "job-0", "checkpoint-" + "0" * 32])
    def test_that_there_is_none_of_is_refused(self, api: httpx.Client, reference: str) -> None:
        answer = go_on(api, reference)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "start_from"

    def test_of_a_training_that_is_not_done_is_refused(self, api: httpx.Client, training: Training) -> None:
        answer = go_on(api, training.job_id)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "training_not_done")

    def test_that_is_no_fine_tune_is_refused(self, api: httpx.Client, publish: Publish) -> None:
        publish("served")
        assert go_on(api, "served").status_code in (400, 409)
