"""What lists look like everywhere, and times."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel


class Identified(BaseModel):
    """What a list can hold: its id is where the next page begins."""

    id: str


Row = TypeVar("Row", bound=Identified)

Limit = Annotated[int, Query(ge=1, le=100, description="Rows of one page.")]
After = Annotated[str | None, Query(max_length=200, description="The `last_id` of the page before.")]


class Page(BaseModel, Generic[Row]):
    object: Literal["list"] = "list"
    data: list[Row]
    has_more: bool
    first_id: str | None
    last_id: str | None


def page(rows: Sequence[Row], has_more: bool) -> Page[Row]:
    return Page(
        data=list(rows),
        has_more=has_more,
        first_id=rows[0].id if rows else None,
        last_id=rows[-1].id if rows else None,
    )


def unix_seconds(moment: datetime) -> int:
    return int(moment.timestamp())


def unix_seconds_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else unix_seconds(moment)
