"""Other names of models: `ft:<base>:<project>:<name>:<job>` of every fine-tune, and those that users brought.

A checkpoint of a fine-tune has a name too: the fine-tune's, and `:ckpt-step-<N>`.
"""

import re

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.models import Checkpoint, Job, Model, ModelAlias, ModelVersion
from db.params.values import ALIAS_PREFIX
from db.queries.jobs import add_event
from db.states import JobKind

CHECKPOINT_NAME = re.compile(r"ft:.+:(?P<job>job-[0-9a-z]{1,64}):ckpt-step-(?P<step>\d{1,9})", re.DOTALL)


def is_alias(reference: str) -> bool:
    return reference.startswith(ALIAS_PREFIX)


def fine_tuned_name(job: Job) -> str:
    """The name of what a fine-tune comes to, in OpenAI's form."""
    return f"{ALIAS_PREFIX}{job.params['base_model']}:{job.project_id}:{job.params['name']}:{job.id}"


def checkpoint_name(job: Job, checkpoint: Checkpoint) -> str:
    return f"{fine_tuned_name(job)}:ckpt-step-{checkpoint.step_number}"


def give_aliases(session: Session, job: Job, version: ModelVersion) -> list[str]:
    """Let the version that a fine-tune has made answer to its other names; one that there was moves, and the
    job's events say so."""
    names = [fine_tuned_name(job), *filter(None, [job.params.get("alias")])]
    for name in names:
        before = aliased_version(session, job.project_id, name)
        if before is not None and before.id != version.id:
            model = session.get_one(Model, before.model_id)
            message = f"{name} answers with this model from now on; it was {model.name}@{before.number}'s."
            add_event(session, job.id, message, level="warn")
        row = insert(ModelAlias).values(project_id=job.project_id, name=name, version_id=version.id)
        row = row.on_conflict_do_update(
            index_elements=[ModelAlias.project_id, ModelAlias.name], set_={"version_id": version.id}
        )
        session.execute(row)
    return names


def aliased_version(session: Session, project_id: str, name: str) -> ModelVersion | None:
    query = select(ModelVersion).join(ModelAlias, ModelAlias.version_id == ModelVersion.id)
    return session.scalars(query.where(ModelAlias.project_id == project_id, ModelAlias.name == name)).first()


def named_checkpoint(session: Session, project_id: str, name: str) -> Checkpoint | None:
    """The checkpoint that a name such as `ft:…:ckpt-step-20` means."""
    match = CHECKPOINT_NAME.fullmatch(name)
    if match is None:
        return None
    query = (
        select(Checkpoint)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Job.id == match["job"], Job.project_id == project_id, Job.kind == JobKind.FINE_TUNE)
        .where(Checkpoint.step_number == int(match["step"]))
        .order_by(Checkpoint.attempt.desc())
    )
    return session.scalars(query.limit(1)).first()
