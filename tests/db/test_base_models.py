"""Which weights a request may start from."""

from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.models import Job, ModelVersion
from db.params.pretrain import PretrainParams
from db.queries.base_models import known_base_models, resolve_base_model
from db.queries.jobs import cancel_job, create_job
from db.queries.models import get_model
from db.settings import Settings
from db.states import JobKind

PROJECT = "default"


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    folder = tmp_path / "bases" / "my-base"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "bases" / "no-model").mkdir()
    return Settings(data_dir=tmp_path / "data", base_models_dir=tmp_path / "bases")


def give_tiny_a_version(session: Session, number: int, weights: str | None) -> None:
    model = get_model(session, PROJECT, "tiny")
    session.add(
        ModelVersion(id=f"version-{number}", model_id=model.id, number=number, weights=weights, details={})
    )
    session.flush()


class TestModelOfThisServer:
    def test_a_recipe_without_weights_gets_one_pretrain_job(
        self, session: Session, own_settings: Settings
    ) -> None:
        first = resolve_base_model(session, own_settings, PROJECT, "tiny")
        second = resolve_base_model(session, own_settings, PROJECT, "tiny")
        job = session.scalars(select(Job)).one()
        assert first.waits_for_job_id == second.waits_for_job_id == job.id
        assert job.params == PretrainParams(name="tiny").model_dump(mode="json")

    def test_a_cancelled_pretrain_job_is_not_joined(self, session: Session, own_settings: Settings) -> None:
        first = resolve_base_model(session, own_settings, PROJECT, "tiny").waits_for_job_id
        assert first is not None
        cancel_job(session, first, project_id=PROJECT)
        assert resolve_base_model(session, own_settings, PROJECT, "tiny").waits_for_job_id != first

    def test_the_newest_version_with_weights_is_taken_and_named(
        self, session: Session, own_settings: Settings
    ) -> None:
        give_tiny_a_version(session, 1, "jobs/one/model")
        give_tiny_a_version(session, 2, "jobs/two/model")
        give_tiny_a_version(session, 3, None)
        newest = resolve_base_model(session, own_settings, PROJECT, "tiny")
        assert (newest.name, newest.source, newest.location) == ("tiny@2", "storage", "jobs/two/model")
        assert resolve_base_model(session, own_settings, PROJECT, "tiny@1").location == "jobs/one/model"

    def test_a_version_without_weights_says_which_have_some(
        self, session: Session, own_settings: Settings
    ) -> None:
        give_tiny_a_version(session, 1, "jobs/one/model")
        give_tiny_a_version(session, 2, None)
        with pytest.raises(InvalidInput, match="these have: tiny@1"):
            resolve_base_model(session, own_settings, PROJECT, "tiny@2")


class TestElsewhere:
    def test_operators_folder(self, session: Session, own_settings: Settings) -> None:
        found = resolve_base_model(session, own_settings, PROJECT, "my-base")
        assert own_settings.base_models_dir is not None
        assert found.location == str(own_settings.base_models_dir / "my-base")

    def test_hub_id_and_revision(self, session: Session, own_settings: Settings) -> None:
        found = resolve_base_model(session, own_settings, PROJECT, "Qwen/Qwen3-0.6B@main")
        assert (found.source, found.location, found.revision) == ("hub", "Qwen/Qwen3-0.6B", "main")

    @pytest.mark.parametrize(
        "reference", ["unknown", "no-model", "../my-base", "/etc", "a/b/c", "../../x", "a/..", "", "tiny@"]
    )
    def test_anything_else_is_refused_with_what_there_is(
        self, session: Session, own_settings: Settings, reference: str
    ) -> None:
        with pytest.raises(InvalidInput, match="There are: tiny, my-base") as caught:
            resolve_base_model(session, own_settings, PROJECT, reference)
        assert caught.value.param == "base_model"

    def test_known_lists_models_and_folders(self, session: Session, own_settings: Settings) -> None:
        assert known_base_models(session, own_settings, PROJECT) == ["tiny", "my-base"]


class TestCancelledWhileWaiting:
    def test_the_job_that_waited_fails_and_says_why(self, session: Session, own_settings: Settings) -> None:
        awaited = resolve_base_model(session, own_settings, PROJECT, "tiny").waits_for_job_id
        assert awaited is not None
        job = create_job(
            session, project_id=PROJECT, kind=JobKind.FINE_TUNE, params={}, waits_for_job_id=awaited
        )
        cancel_job(session, awaited, project_id=PROJECT)
        session.refresh(job)
        assert job.status == "failed"
        assert job.error is not None
        assert job.error["code"] == "awaited_job_ended"
        assert {step.status for step in job.steps} == {"cancelled"}
