"""Rows of a batch to /v1/responses: asked by the chat route, which every backend has; answered as responses.

Nothing of them is stored.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from db.errors import InvalidInput, Unavailable
from serving.responses.asking import chat_body
from serving.responses.items import read_items
from serving.responses.request import BatchedResponse
from serving.responses.writing import answered

JSON = dict[str, Any]
ENDPOINT = "/v1/responses"


def as_chat(body: Mapping[str, Any]) -> JSON:
    """A row's body as one of the chat route.

    Raises:
        InvalidInput: it asks for what cannot be answered here; `param` names the field.
    """
    asked = _read(body)
    return chat_body(asked, read_items(asked.input))


def as_response(body: Mapping[str, Any], said: Mapping[str, Any]) -> JSON:
    """The response that a row's body and the chat route's answer come to.

    Raises:
        Unavailable: that is no answer.
    """
    try:
        return answered(_read(body), said)
    except (LookupError, TypeError, AttributeError) as error:
        raise Unavailable(
            "The model's server gave an answer that is none.", code="bad_backend_answer"
        ) from error


def _read(body: Mapping[str, Any]) -> BatchedResponse:
    try:
        return BatchedResponse.model_validate(body)
    except ValidationError as error:
        row = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in row["loc"]) or None
        message = row["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{place}: {message}." if place else f"{message}.", param=place) from None
