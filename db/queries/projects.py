"""Making, finding, listing and archiving projects."""

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from db.errors import Conflict, NotFound
from db.ids import new_id
from db.models import DEFAULT_PROJECT, Model, Project
from db.queries.paging import page_of


def create_project(session: Session, project_id: str, *, name: str = "", **limits: int | None) -> Project:
    """Make a project with a catalogue of its own: that of `default`, as it was before anything was made.

    Raises:
        Conflict: there is one by that id.
    """
    row = insert(Project).values(id=project_id, name=name, **limits)
    made = session.scalars(row.on_conflict_do_nothing().returning(Project)).one_or_none()
    if made is None:
        raise Conflict(f"There is a project {project_id!r} already.", param="id", code="project_exists")
    catalogue = select(Model).where(Model.project_id == DEFAULT_PROJECT, Model.recipe.is_not(None))
    for model in session.scalars(catalogue.order_by(Model.created_at, Model.id)).all():
        session.add(Model(id=new_id("model"), project_id=project_id, name=model.name, recipe=model.recipe))
    session.flush()
    return made


def get_project(session: Session, project_id: str, *, lock: bool = False) -> Project:
    """Find one project.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(Project).where(Project.id == project_id)
    if lock:
        query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    project = session.scalars(query).one_or_none()
    if project is None:
        raise NotFound(f"There is no project {project_id!r}.", param="id")
    return project


def list_projects(
    session: Session, *, only: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[Project], bool]:
    """One page of projects by id, and whether there are more; `only` that one."""
    query = select(Project)
    if only is not None:
        query = query.where(Project.id == only)
    return page_of(session, query, Project.id, after=after, limit=limit, ascending=True)


def change_project(session: Session, project: Project, changes: dict[str, Any]) -> None:
    """Set some columns of a locked project."""
    for name, value in changes.items():
        setattr(project, name, value)
    session.flush()
    session.refresh(project)


def archive_project(session: Session, project: Project) -> None:
    """Refuse a project's keys from now on. Its rows stay, and what it has queued runs to its end.

    Raises:
        Conflict: it is the one that the server itself works with.
    """
    if project.id == DEFAULT_PROJECT:
        raise Conflict(
            f"The project {DEFAULT_PROJECT!r} administers this server: it cannot be archived.",
            code="project_needed",
        )
    if project.archived_at is None:
        change_project(session, project, {"archived_at": func.clock_timestamp()})


def restore_project(session: Session, project: Project) -> None:
    """Let an archived project's keys in again."""
    change_project(session, project, {"archived_at": None})
