"""A new job from one that exists, with some of its params changed."""

from typing import Any

from api.jobs.schemas import CloneRequest
from api.jobs.submission import read_request, submit
from api.unit_of_work import Unit
from db.models import Job
from db.queries.jobs import get_job

# What a clone takes over from its job unless the request says otherwise.
TAKEN_OVER = ("max_attempts", "max_runtime_seconds", "priority", "webhook_url")


def clone_job(unit: Unit, job_id: str, changes: CloneRequest) -> Job:
    """Submit a job again, with `changes`. It is checked as any submit is.

    Raises:
        NotFound: there is none by that id.
        InvalidInput: the changed job cannot work; `param` names the field.
    """
    job = get_job(unit.session, job_id, project_id=unit.project_id)
    body: dict[str, Any] = {"kind": job.kind, "params": {**job.params, **changes.params}}
    body |= {name: getattr(job, name) for name in TAKEN_OVER} | {"metadata": job.notes}
    body |= {
        name: getattr(changes, name) for name in (*TAKEN_OVER, "metadata") if name in changes.model_fields_set
    }
    return submit(unit, read_request(body), cloned_from=job.id)
