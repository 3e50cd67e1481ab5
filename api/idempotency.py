"""Requests that may come twice: `@repeatable` on every POST that creates a row by JSON.

A repetition gets the answer of the first, byte for byte, and creates nothing. It is known by the caller's
`Idempotency-Key`, or, since OpenAI's client sends none, by the count with which that client marks what it
sends again. Answers are kept by the transaction that creates the row. An error rolls that back, so errors
are not kept: they created nothing, and the same request may pass once its cause is mended.
"""

import contextlib
import contextvars
import functools
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Header, Request
from pydantic import BaseModel
from sqlalchemy import text
from starlette.responses import Response

from api.auditing import tell_change, told
from api.caller import CALLER, Caller, known
from api.errors import ErrorBody
from api.group_commit import FellApart, GroupCommit
from api.turns import Turns
from api.unit_of_work import Services, Unit, services_of, signature_without_unit
from db.errors import Conflict, InvalidInput
from db.queries.answers import (
    Asked,
    KeptAnswer,
    find_answer_of_equal,
    find_answers,
    fingerprint_of,
    keep_answers,
)
from db.session import inserting_together

KEY = "Idempotency-Key"
PRINTABLE = re.compile(r"[ -~]{1,255}")
RETRY_COUNT = "x-stainless-retry-count"
REPLAYED = {"idempotent-replayed": "true"}

# Who waits for a lock holds up all of its group.
GIVE_WAY = text("SET LOCAL lock_timeout = '100ms'")

REUSED_KEY: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": f"The {KEY} was used with another body."}
}
KEY_PARAMETER = inspect.Parameter(
    "idempotency_key",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        str | None,
        Header(
            description="Makes the request safe to repeat: for 24 hours the same key with the same body gets "
            "the same answer. At most 255 printable ASCII characters, such as a UUID."
        ),
    ],
)


def repeatable(endpoint: Callable[..., BaseModel]) -> Callable[..., Any]:
    """Do for a `def` endpoint what `transactional` does, and once only for requests that come again.

    Raises:
        InvalidInput: the key is too long, or holds what cannot be printed.
        Conflict: the key was used with another body.
    """
    wants_request = "request" in inspect.signature(endpoint).parameters

    @functools.wraps(endpoint)
    async def once(*, request: Request, idempotency_key: str | None, **arguments: Any) -> Response:
        caller = known(CALLER.get())
        asked = await _asked(request, caller.project_id, idempotency_key)
        if wants_request:
            arguments["request"] = request
        work = _Work(
            request=request,
            asked=asked,
            caller=caller,
            status=request.scope["route"].status_code or 200,
            endpoint=functools.partial(endpoint, **arguments),
            context=contextvars.copy_context(),
        )
        services = services_of(request)
        async with _turn(services.turns, asked):
            if asked.again:
                return await services.run_in_transaction(lambda unit: _answer_again(unit, work))
            groups: GroupCommit[_Work, Response] = request.app.state.groups
            return await groups.run(work)

    once.__signature__ = signature_without_unit(endpoint, KEY_PARAMETER)  # type: ignore[attr-defined]
    once.is_repeatable = True  # type: ignore[attr-defined]
    return once


@dataclass(frozen=True)
class _Work:
    """A request that is to be answered once.

    Args:
        caller: whose request it is: others of its group may be of other projects.
        status: of an answer that is not an error.
        endpoint: what makes it; it may be begun anew after a rollback.
        context: in which its request is logged, on whatever thread it is done.
    """

    request: Request
    asked: Asked
    caller: Caller
    status: int
    endpoint: Callable[[Unit], BaseModel]
    context: contextvars.Context


def make_groups(services: Services) -> GroupCommit[_Work, Response]:
    """The groups in which `repeatable` requests of this process are committed."""

    def together(works: Sequence[_Work]) -> list[Response]:
        return services.in_transaction(lambda unit: _answer_together(unit, works))

    def alone(work: _Work) -> Response:
        return services.in_transaction(lambda unit: _answer(unit, [work])[0])

    return GroupCommit(together, alone)


def _answer_together(unit: Unit, works: Sequence[_Work]) -> list[Response]:
    unit.session.execute(GIVE_WAY)
    unit.shared = True
    try:
        return _answer(unit, works)
    except Exception as error:
        raise FellApart from error  # each meets its own error, if it has one, when it is done alone


def _answer(unit: Unit, works: Sequence[_Work]) -> list[Response]:
    """Answer requests as before, or do them one after another, and keep their answers."""
    answers: list[Response] = []
    new: list[tuple[Asked, KeptAnswer]] = []
    found = find_answers(unit.session, [work.asked for work in works])
    with inserting_together(unit.session):
        for work, kept in zip(works, found, strict=True):
            if kept is not None:
                answers.append(_repeated(kept, work))
                continue
            made = _make(unit, work)
            new.append((work.asked, made))
            answers.append(_response(made))
    keep_answers(unit.session, new)
    return answers


def _answer_again(unit: Unit, work: _Work) -> Response:
    """Answer a request that says, without a key, that it repeats an equal one."""
    kept = find_answer_of_equal(unit.session, work.asked)
    if kept is not None:
        return _repeated(kept, work)
    made = _make(unit, work)
    keep_answers(unit.session, [(work.asked, made)])
    return _response(made)


def _make(unit: Unit, work: _Work) -> KeptAnswer:
    unit.asking = work.caller
    answer = work.context.run(work.endpoint, unit)
    body = answer.model_dump_json(by_alias=True)
    tell_change(unit, work.request, answer)
    unit.session.flush()
    unit.session.expunge_all()  # the next of the group reads the rows as they are then
    return KeptAnswer(work.asked.fingerprint, work.status, body)


def _response(answer: KeptAnswer, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.body, answer.status, headers, media_type="application/json")


async def _asked(request: Request, project_id: str, key: str | None) -> Asked:
    if key is not None and not PRINTABLE.fullmatch(key):
        raise InvalidInput(f"{KEY} must be 1 to 255 printable ASCII characters, such as a UUID.", param=KEY)
    # Spaces and the order of fields mean nothing in JSON.
    body = json.dumps(await request.json(), sort_keys=True) if await request.body() else ""
    count = request.headers.get(RETRY_COUNT, "")
    return Asked(
        project_id=project_id,
        path=request.url.path,
        fingerprint=fingerprint_of(project_id, request.url.path, body),
        key=key,
        again=key is None and count.isdecimal() and int(count) > 0,
    )


def _turn(turns: Turns, asked: Asked) -> contextlib.AbstractAsyncContextManager[None]:
    if asked.key is not None:
        return turns.of((asked.project_id, asked.path, asked.key))
    return turns.of(asked.fingerprint) if asked.again else contextlib.nullcontext()


def _repeated(kept: KeptAnswer, work: _Work) -> Response:
    if kept.fingerprint != work.asked.fingerprint:
        raise Conflict(
            f"This {KEY} came with another body before. Send a new key with a new request.",
            param=KEY,
            code="idempotency_key_reused",
        )
    told(work.request)  # it changes nothing
    return _response(kept, REPLAYED)
