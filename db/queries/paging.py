"""One page of a list, by the ids of its rows."""

from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

T = TypeVar("T")


def page_of(
    session: Session,
    query: Select[T],
    ids: InstrumentedAttribute[Any],
    *,
    after: str | int | None,
    limit: int,
    ascending: bool = False,
) -> tuple[list[T], bool]:
    """What comes after the row of that id, newest first unless `ascending`, and whether there is more."""
    if after is not None:
        query = query.where(ids > after if ascending else ids < after)
    rows = list(session.scalars(query.order_by(ids if ascending else ids.desc()).limit(limit + 1)))
    return rows[:limit], len(rows) > limit
