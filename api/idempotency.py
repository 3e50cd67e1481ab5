"""Requests that may come twice: `@repeatable` on every POST that creates a row by JSON.

A repetition gets the answer of the first, byte for byte, and creates nothing. It is known by the caller's
`Idempotency-Key`, or, since OpenAI's client sends none, by the count with which that client marks what it
sends again. Answers are kept by the transaction that creates the row. An error rolls that back, so errors
are not kept: they created nothing, and the same request may pass once its cause is mended.
"""

import contextlib
import functools
import inspect
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Header, Request
from pydantic import BaseModel
from starlette.responses import Response

from api.errors import ErrorBody
from api.turns import Turns
from api.unit_of_work import Unit, services_of, signature_without_unit
from db.errors import Conflict, InvalidInput
from db.models import DEFAULT_PROJECT
from db.queries.answers import Asked, KeptAnswer, find_answer, fingerprint_of, keep_answer

KEY = "Idempotency-Key"
PRINTABLE = re.compile(r"[ -~]{1,255}")
RETRY_COUNT = "x-stainless-retry-count"
REPLAYED = {"idempotent-replayed": "true"}

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
        asked = await _asked(request, idempotency_key)
        if wants_request:
            arguments["request"] = request
        status = request.scope["route"].status_code or 200

        def work(unit: Unit) -> Response:
            kept = find_answer(unit.session, asked)
            if kept is not None:
                return _again(kept, asked)
            body = endpoint(unit, **arguments).model_dump_json(by_alias=True)
            keep_answer(unit.session, asked, status=status, body=body)
            return Response(body, status, media_type="application/json")

        services = services_of(request)
        async with _turn(services.turns, asked):
            return await services.run_in_transaction(work)

    once.__signature__ = signature_without_unit(endpoint, KEY_PARAMETER)  # type: ignore[attr-defined]
    once.is_repeatable = True  # type: ignore[attr-defined]
    return once


async def _asked(request: Request, key: str | None) -> Asked:
    if key is not None and not PRINTABLE.fullmatch(key):
        raise InvalidInput(f"{KEY} must be 1 to 255 printable ASCII characters, such as a UUID.", param=KEY)
    # Spaces and the order of fields mean nothing in JSON.
    body = json.dumps(await request.json(), sort_keys=True) if await request.body() else ""
    count = request.headers.get(RETRY_COUNT, "")
    return Asked(
        project_id=DEFAULT_PROJECT,
        path=request.url.path,
        fingerprint=fingerprint_of(DEFAULT_PROJECT, request.url.path, body),
        key=key,
        again=count.isdecimal() and int(count) > 0,
    )


def _turn(turns: Turns, asked: Asked) -> contextlib.AbstractAsyncContextManager[None]:
    if asked.key is not None:
        return turns.of((asked.project_id, asked.path, asked.key))
    return turns.of(asked.fingerprint) if asked.again else contextlib.nullcontext()


def _again(kept: KeptAnswer, asked: Asked) -> Response:
    if kept.fingerprint != asked.fingerprint:
        raise Conflict(
            f"This {KEY} came with another body before. Send a new key with a new request.",
            param=KEY,
            code="idempotency_key_reused",
        )
    return Response(kept.body, kept.status, REPLAYED, media_type="application/json")
