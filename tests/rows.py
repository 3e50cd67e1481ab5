"""Rows as uploads and finished jobs leave them."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.ids import new_id
from db.models import DEFAULT_PROJECT, File, Job, Model, ModelFile, ModelVersion
from db.queries.jobs import create_job
from db.states import JobKind


def add_file(session: Session, filename: str, **given: Any) -> File:
    """An uploaded file, of which nothing lies on the disk."""
    file_id = given.get("id") or new_id("file")
    usual = {"project_id": DEFAULT_PROJECT, "purpose": "assistants", "bytes": 1, "sha256": new_id("sha")}
    row = File(**{"id": file_id, "filename": filename, "path": f"files/{file_id}", **usual, **given})
    session.add(row)
    session.flush()
    return row


def add_version(
    session: Session, name: str, *files: dict[str, Any], project: str = DEFAULT_PROJECT, **given: Any
) -> ModelVersion:
    """The next version of a model, which its name answers with; the model is made if need be.

    Args:
        files: what is to be said of each that is served.
    """
    model = session.scalars(select(Model).filter_by(project_id=project, name=name)).one_or_none()
    if model is None:
        model = Model(id=new_id("model"), project_id=project, name=name, recipe=None)
        session.add(model)
        session.flush()
    number = session.query(ModelVersion).filter_by(model_id=model.id).count() + 1
    version = ModelVersion(
        **{"id": new_id("version"), "model_id": model.id, "number": number, "details": {}, **given}
    )
    for position, file in enumerate(files):
        usual = {"quantization": "Q4_K_M", "backend": "llama_server", "bytes": 4, "sha256": "0" * 64, **file}
        usual.setdefault("backend_name", f"{name}-{number}-{usual['quantization']}".lower())
        version.files.append(ModelFile(position=position, **usual))
    session.add(version)
    session.flush()
    model.current_version_id = version.id
    return version


def add_job(session: Session, **given: Any) -> Job:
    """A queued job; a pretraining unless another is given, which needs no other row."""
    usual = {"project_id": DEFAULT_PROJECT, "kind": JobKind.PRETRAIN, "params": {"name": "m"}}
    return create_job(session, **{**usual, **given})
