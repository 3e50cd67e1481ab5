"""HTTP of projects. Who administers the server sees and changes all, others see their own."""

from fastapi import Request

from api.caller import Caller
from api.errors import CONFLICT, Forbidden
from api.idempotency import REUSED_KEY, repeatable
from api.pages import After, Limit, Page, page, unix_seconds, unix_seconds_or_none
from api.projects.schemas import ProjectChange, ProjectOut, ProjectRequest, ProjectWithUsage, UsageOut
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from db.errors import NotFound
from db.models import DEFAULT_PROJECT, Project
from db.queries.projects import (
    archive_project,
    change_project,
    create_project,
    get_project,
    list_projects,
    restore_project,
)
from db.queries.usage import usage_of

router = make_router("projects")


@router.post("/v1/projects", response_model=ProjectOut, summary="Make a project", responses=REUSED_KEY)
@repeatable
def create_one_project(unit: Unit, body: ProjectRequest) -> ProjectOut:
    """It sees no other project's rows, and has a catalogue of its own. `POST /v1/keys` lets somebody in."""
    _need_operator(unit.caller)
    limits = body.model_dump(exclude={"id", "name"})
    return _project_out(create_project(unit.session, body.id, name=body.name, **limits))


@router.get("/v1/projects", response_model=Page[ProjectOut], summary="List projects")
@transactional
def list_all_projects(unit: Unit, after: After = None, limit: Limit = 20) -> Page[ProjectOut]:
    only = None if unit.caller.is_operator else unit.project_id
    rows, more = list_projects(unit.session, only=only, after=after, limit=limit)
    return page([_project_out(row) for row in rows], more)


@router.get("/v1/projects/{project_id}", response_model=ProjectWithUsage, summary="Look at a project")
@transactional
def get_one_project(unit: Unit, project_id: str) -> ProjectWithUsage:
    """With what it uses now."""
    shown = _project_out(_find(unit, project_id))
    used = usage_of(unit.session, project_id)
    usage = UsageOut(jobs=used.jobs, gpu_minutes=round(used.gpu_minutes, 2), bytes=used.bytes)
    return ProjectWithUsage(**shown.model_dump(), usage=usage)


@router.post("/v1/projects/{project_id}", response_model=ProjectOut, summary="Change a project")
@transactional
def change_one_project(unit: Unit, request: Request, project_id: str, body: ProjectChange) -> ProjectOut:
    """A new limit holds within 5 s. What runs already goes on, even beyond it."""
    project = _to_change(unit, request, project_id)
    changes = {field: getattr(body, field) for field in body.model_fields_set}
    if changes.get("name", "") is None:
        del changes["name"]
    change_project(unit.session, project, changes)
    return _project_out(project)


@router.post(
    "/v1/projects/{project_id}/archive",
    response_model=ProjectOut,
    summary="Archive a project",
    responses=CONFLICT,
)
@transactional
def archive_one_project(unit: Unit, request: Request, project_id: str) -> ProjectOut:
    """Its keys are refused within 5 s. Its rows and files stay; what it has queued runs to its end."""
    project = _to_change(unit, request, project_id)
    archive_project(unit.session, project)
    return _project_out(project)


@router.post(
    "/v1/projects/{project_id}/restore", response_model=ProjectOut, summary="Restore an archived project"
)
@transactional
def restore_one_project(unit: Unit, request: Request, project_id: str) -> ProjectOut:
    project = _to_change(unit, request, project_id)
    restore_project(unit.session, project)
    return _project_out(project)


def _find(unit: Unit, project_id: str, *, lock: bool = False) -> Project:
    if not unit.caller.is_operator and project_id != unit.project_id:
        raise NotFound(f"There is no project {project_id!r}.", param="id")
    return get_project(unit.session, project_id, lock=lock)


def _to_change(unit: Unit, request: Request, project_id: str) -> Project:
    project = _find(unit, project_id, lock=True)
    _need_operator(unit.caller)
    unit.after_commit(services_of(request).keyring.forget)
    return project


def _need_operator(caller: Caller) -> None:
    if not caller.is_operator:
        raise Forbidden(
            f"Only an `admin` key of the project {DEFAULT_PROJECT!r} changes projects.", code="scope_missing"
        )


def _project_out(project: Project) -> ProjectOut:
    return ProjectOut(
        id=project.id,
        name=project.name,
        status="archived" if project.archived_at is not None else "active",
        max_jobs=project.max_jobs,
        max_gpu_minutes=project.max_gpu_minutes,
        max_bytes=project.max_bytes,
        max_requests_per_minute=project.max_requests_per_minute,
        created_at=unix_seconds(project.created_at),
        archived_at=unix_seconds_or_none(project.archived_at),
    )
