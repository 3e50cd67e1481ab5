"""What may be embedded, and whether the vectors are as long as was asked for."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from db.errors import InvalidInput, Unavailable

MOST_INPUTS = 2048  # as OpenAI has it
BYTES_OF_FLOAT = 4
HOW = (
    "give a text, a list of texts, the ids of one text's tokens, or a list of such lists; none of them empty"
)


def check_request(body: Mapping[str, Any]) -> None:
    """See that a request can be understood before it is passed on.

    Raises:
        InvalidInput: a field is missing or wrong.
    """
    _check_input(body.get("input"))
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidInput("encoding_format must be float or base64.", param="encoding_format")
    dimensions = body.get("dimensions")
    if dimensions is not None and (not _is_number(dimensions) or dimensions < 1):
        raise InvalidInput("dimensions must be a whole number of at least 1.", param="dimensions")


def _check_input(given: Any) -> None:
    if isinstance(given, str) and given:
        return
    if not isinstance(given, list) or not given:
        raise InvalidInput(f"input is missing or empty: {HOW}.", param="input")
    if all(map(_is_number, given)):
        return
    if len(given) > MOST_INPUTS:
        raise InvalidInput(
            f"input has {len(given)} texts; at most {MOST_INPUTS} go into one request.", param="input"
        )
    kinds = {_kind(one) for one in given}
    if None in kinds or len(kinds) > 1:
        wrong = next((place for place, one in enumerate(given) if _kind(one) != _kind(given[0])), 0)
        raise InvalidInput(f"input[{wrong}] cannot be embedded: {HOW}.", param="input")


def _kind(one: Any) -> str | None:
    """Whether it is a text or the ids of one; None: neither, or empty."""
    if isinstance(one, str):
        return "text" if one else None
    return "tokens" if isinstance(one, list) and one and all(map(_is_number, one)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_dimensions(answer: bytes, asked: int) -> None:
    """See that a server has heeded `dimensions`, which not every one does.

    To cut vectors here would be no help: those of a model that was not trained for it lose their meaning.

    Raises:
        InvalidInput: its vectors are of another length.
        Unavailable: it gave no vectors.
    """
    try:
        embedding = json.loads(answer)["data"][0]["embedding"]
        packed = isinstance(embedding, str)
        length = len(base64.b64decode(embedding)) // BYTES_OF_FLOAT if packed else len(embedding)
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable(
            "The embedding server gave an answer that is none.", code="bad_backend_answer"
        ) from error
    if length != asked:
        raise InvalidInput(
            f"dimensions is {asked}, and this model's vectors have {length}: leave it out, or take a model "
            "that was trained for shorter ones, on a server that cuts them.",
            param="dimensions",
            code="not_supported",
        )
