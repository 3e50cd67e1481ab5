"""Turns of conversations, kept for a project: written once they have ended, read, and removed."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from api.responses.schemas import ItemPage, ResponseDeleted, ResponseRequest
from api.unit_of_work import Services, Unit
from db.errors import InvalidInput
from db.models import StoredResponse
from db.queries.responses import conversation_up_to, get_response
from db.storable import storable
from serving.responses.writing import shown, shown_item

JSON = dict[str, Any]


async def keep(services: Services, asked: ResponseRequest, items: Sequence[JSON], response: JSON) -> None:
    """Keep a turn that has ended, unless the request says not to.

    Raises:
        OperationalError: the database does not answer.
    """
    if asked.store is False:
        return
    turn = storable({"input": items, "body": response})
    size = len(json.dumps(turn))

    def write(unit: Unit) -> None:
        unit.session.add(
            StoredResponse(
                id=response["id"],
                project_id=unit.project_id,
                previous_id=asked.previous_response_id,
                input=turn["input"],
                body=turn["body"],
                bytes=size,
            )
        )

    await services.run_in_transaction(write)


def read(unit: Unit, response_id: str, include: Collection[str]) -> JSON:
    found = get_response(unit.session, response_id, project_id=unit.project_id)
    return shown(dict(found.body), include)


def delete(unit: Unit, response_id: str) -> ResponseDeleted:
    """Remove a turn. Conversations that build on it cannot be gone on with any more."""
    unit.session.delete(get_response(unit.session, response_id, project_id=unit.project_id))
    return ResponseDeleted(id=response_id)


def cancel(unit: Unit, response_id: str) -> None:
    """Refuse: what is stored has ended.

    Raises:
        InvalidInput: always, for a response that there is.
    """
    found = get_response(unit.session, response_id, project_id=unit.project_id)
    raise InvalidInput(
        f"The response {response_id} is {found.body['status']}. Only those in the background can be "
        "cancelled, and there are none here: hang up to end one that is being answered.",
        param="response_id",
        code="not_cancellable",
    )


def list_input(
    unit: Unit,
    response_id: str,
    *,
    after: str | None,
    limit: int,
    newest_first: bool,
    include: Collection[str],
) -> ItemPage:
    """What a response was asked with, the conversation before it within.

    Raises:
        NotFound: there is no such response, or no such item in it.
        InvalidInput: the conversation before it is no longer there.
    """
    found = get_response(unit.session, response_id, project_id=unit.project_id)
    before: list[Any] = []
    if found.previous_id is not None:
        before = conversation_up_to(unit.session, found.previous_id, project_id=unit.project_id)
    items = _told_apart([shown_item(item, include) for item in (*before, *found.input)])
    if newest_first:
        items.reverse()
    ids = [item["id"] for item in items]
    start = 0
    if after is not None:
        if after not in ids:
            raise InvalidInput(f"after names {after!r}, which is no item of this response.", param="after")
        start = ids.index(after) + 1
    rows = items[start : start + limit]
    return ItemPage(
        data=rows,
        has_more=start + limit < len(items),
        first_id=rows[0]["id"] if rows else None,
        last_id=rows[-1]["id"] if rows else None,
    )


def _told_apart(items: Sequence[JSON]) -> list[JSON]:
    """Items of a conversation, each with an id of its own: callers may send one twice.

    The second of an id is told with a number, on every page the same.
    """
    taken = {item["id"] for item in items}
    seen: Counter[str] = Counter()
    told = []
    for item in items:
        own = item["id"]
        seen[own] += 1
        while seen[own] > 1 and f"{own}-{seen[own]}" in taken:
            seen[own] += 1
        told.append(item if seen[own] == 1 else {**item, "id": f"{own}-{seen[own]}"})
    return told
