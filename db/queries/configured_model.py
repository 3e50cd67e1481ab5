"""The model that lathe.yaml names: whether it is there, and which job fetches it."""

from typing import Any

from sqlalchemy import exists, func, select, text
from sqlalchemy.orm import Session

from db.lathe_yaml import ConfiguredModel
from db.models import DEFAULT_PROJECT, Job, Model, ModelVersion
from db.states import JobKind

ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended('configured_model', 0))")


def lock_fetching(session: Session) -> None:
    """Let nobody else decide, until the transaction's end, whether the model is to be fetched."""
    session.execute(ONE_AT_A_TIME)


def pull_params(model: ConfiguredModel) -> dict[str, Any]:
    """What a job is given that fetches it."""
    source = {"hub": model.hub, "revision": model.revision, "filename": model.filename}
    return {"source": source, "name": model.name, "prompt_format": model.prompt_format}


def find_pull(session: Session, model: ConfiguredModel) -> Job | None:
    """The newest job that fetches, or was to fetch, what is configured now."""
    query = (
        select(Job)
        .where(
            Job.project_id == DEFAULT_PROJECT,
            Job.kind == JobKind.PULL,
            Job.params.contains(pull_params(model)),
        )
        .order_by(Job.id.desc())
        .limit(1)
    )
    return session.scalars(query).first()


def answers(session: Session, name: str) -> bool:
    """Whether there is a model by that name, and something of it was published."""
    query = exists().where(
        Model.project_id == DEFAULT_PROJECT, Model.name == name, Model.current_version_id.is_not(None)
    )
    return session.scalars(select(query)).one()


def came_from_there(session: Session, model: ConfiguredModel) -> bool:
    """Whether it was fetched from where it is configured to come from by a job that is gone since."""
    source = func.jsonb_extract_path_text(ModelVersion.details, "source", "hub")
    query = exists().where(
        Model.project_id == DEFAULT_PROJECT,
        Model.name == model.name,
        ModelVersion.model_id == Model.id,
        ModelVersion.job_id.is_(None),
        source == model.hub,
    )
    return session.scalars(select(query)).one()
