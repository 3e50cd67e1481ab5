"""Uploaded files."""

from typing import Literal

from sqlalchemy import ColumnElement, func, literal_column, or_, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.errors import NotFound
from db.kinds import FILE_FIELDS, FILE_LISTS
from db.models import File, Job
from db.queries.paging import page_of


def unexpired() -> ColumnElement[bool]:
    return or_(File.expires_at.is_(None), File.expires_at > func.statement_timestamp())


def get_file(
    session: Session,
    file_id: str,
    *,
    project_id: str,
    param: str = "id",
    lock: Literal["share", "update"] | None = None,
    also_expired: bool = False,
) -> File:
    """Find an uploaded file of a project.

    Args:
        also_expired: for a job that began while it was not.
        lock: `share` keeps it from being deleted until the transaction ends, `update` is for who deletes.
    Raises:
        NotFound: there is none by that id; `param` names the field that asked for it.
    """
    query = select(File).where(File.id == file_id, File.project_id == project_id)
    if not also_expired:
        query = query.where(unexpired())
    if lock is not None:
        query = query.with_for_update(read=lock == "share")
    file = session.scalars(query).one_or_none()
    if file is None:
        raise NotFound(f"There is no file {file_id!r}: upload it with POST /v1/files first.", param=param)
    return file


def list_files(
    session: Session,
    *,
    project_id: str,
    purpose: str | None = None,
    after: str | None = None,
    limit: int = 100,
    ascending: bool = False,
) -> tuple[list[File], bool]:
    """One page of files, newest first unless `ascending`, and whether there are more."""
    query = select(File).where(File.project_id == project_id, unexpired())
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    return page_of(session, query, File.id, after=after, limit=limit, ascending=ascending)


def names_file(file_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """Whether a job's params name this file."""
    paths = [field if "." not in field else tuple(field.split(".")) for field in FILE_FIELDS]
    one = (Job.params[path].as_string() == file_id for path in paths)
    listed = func.jsonb_build_array(func.jsonb_build_object("file", file_id))
    # As the index has it: SQLAlchemy would write a subscript.
    lists = (Job.params.op("->", return_type=JSONB)(literal_column(f"'{name}'")) for name in FILE_LISTS)
    return or_(*one, *(each.contains(listed) for each in lists))
