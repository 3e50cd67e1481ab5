"""Stored responses: a conversation is a chain of them, each naming the one before."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Integer, func, literal, select, update
from sqlalchemy.orm import Session, aliased

from db.errors import InvalidInput, NotFound
from db.models import StoredResponse

MOST_TURNS = 1000
# A turn that was used today need not be told so again.
NOTED_EVERY = timedelta(days=1)


def get_response(session: Session, response_id: str, *, project_id: str) -> StoredResponse:
    """Raise NotFound unless the project has it."""
    query = select(StoredResponse).where(
        StoredResponse.id == response_id, StoredResponse.project_id == project_id
    )
    found = session.scalars(query).one_or_none()
    if found is None:
        raise NotFound(
            f"There is no response {response_id!r}: it was deleted, its time is over, or it was not stored "
            "(store: false).",
            param="response_id",
            code="response_not_found",
        )
    return found


def conversation_up_to(session: Session, response_id: str, *, project_id: str) -> list[Any]:
    """The items of a conversation up to and with a response, in their order: what came in, what came out.

    Raises:
        InvalidInput: it, or one before it, is not there; or there are too many.
    """
    rows = _chain(session, response_id, project_id)
    if not rows:
        raise _unusable(f"There is no stored response {response_id!r}.")
    oldest = rows[0]
    if oldest.previous_id is not None:
        raise _unusable(
            f"The conversation before {response_id} has more than {MOST_TURNS} turns."
            if len(rows) == MOST_TURNS
            else f"The response {oldest.previous_id}, on which {response_id} builds, is no longer there."
        )
    _note_use(session, [row.id for row in rows])
    return [item for row in rows for item in (*row.input, *row.body["output"])]


def _chain(session: Session, response_id: str, project_id: str) -> Sequence[StoredResponse]:
    """A response and those before it, the oldest first."""
    first = select(StoredResponse.id, StoredResponse.previous_id, literal(1, Integer).label("place")).where(
        StoredResponse.id == response_id, StoredResponse.project_id == project_id
    )
    chain = first.cte("chain", recursive=True)
    before = aliased(StoredResponse)
    chain = chain.union_all(
        select(before.id, before.previous_id, chain.c.place + 1).where(
            before.id == chain.c.previous_id, before.project_id == project_id, chain.c.place < MOST_TURNS
        )
    )
    query = select(StoredResponse).join(chain, StoredResponse.id == chain.c.id)
    return session.scalars(query.order_by(chain.c.place.desc())).all()


def _note_use(session: Session, ids: Sequence[str]) -> None:
    now = func.statement_timestamp()
    stale = StoredResponse.last_used_at < now - NOTED_EVERY
    noted = update(StoredResponse).where(StoredResponse.id.in_(ids), stale).values(last_used_at=now)
    session.execute(noted, execution_options={"synchronize_session": False})


def _unusable(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} Send the conversation as input, and no previous_response_id.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
