"""Filters on documents' attributes, as conditions in SQL; values are always parameters."""

from typing import Any

from sqlalchemy import ColumnElement, and_, any_, cast, func, literal, not_, or_
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from db.errors import InvalidInput
from db.models import Document

DEEPEST = 8
COMPARISONS_MOST = 256  # each is made of each document, several times a search
ORDER = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}


def condition(given: dict[str, Any]) -> ColumnElement[bool]:
    """Turn a comparison, or `and` and `or` of several, into a condition on `Document`.

    A document without the attribute fits to `ne` and `nin`, and to no other. Numbers are compared with
    numbers and texts with texts.

    Raises:
        InvalidInput: the value does not go with the comparison, filters nest too deep, or are too many.
    """
    if _comparisons(given) > COMPARISONS_MOST:
        raise InvalidInput(
            f"filters compare more than {COMPARISONS_MOST} times: in and nin take many values at once.",
            param="filters",
        )
    return _condition(given)


def _comparisons(given: dict[str, Any], depth: int = 0) -> int:
    if depth > DEEPEST:
        raise InvalidInput(f"filters nest more than {DEEPEST} deep.", param="filters")
    return sum(_comparisons(part, depth + 1) for part in given["filters"]) if "filters" in given else 1


def _condition(given: dict[str, Any]) -> ColumnElement[bool]:
    kind = given["type"]
    if kind in ("and", "or"):
        parts = map(_condition, given["filters"])
        return and_(*parts) if kind == "and" else or_(*parts)
    key, value = given["key"], given["value"]
    if kind in ("in", "nin"):
        if not isinstance(value, list):
            raise InvalidInput(f"filters: {kind} takes a list of values.", param="filters")
        among = _attribute(key) == any_(cast(literal(value, ARRAY(JSONB)), ARRAY(JSONB)))
        among = func.coalesce(among, False)
        return among if kind == "in" else not_(among)
    if isinstance(value, list):
        raise InvalidInput(f"filters: {kind} takes one value; a list goes with in and nin.", param="filters")
    if kind == "eq":
        return _equals(key, value)
    if kind == "ne":
        return not_(_equals(key, value))
    if isinstance(value, bool):
        raise InvalidInput(f"filters: {kind} takes a number or a text.", param="filters")
    attribute = _attribute(key)
    same_type = func.jsonb_typeof(attribute) == ("string" if isinstance(value, str) else "number")
    compared = attribute.bool_op(ORDER[kind])(literal(value, JSONB))
    return func.coalesce(and_(same_type, compared), False)


def _attribute(key: str) -> ColumnElement[Any]:
    return Document.attributes.op("->", return_type=JSONB())(key)


def _equals(key: str, value: Any) -> ColumnElement[bool]:
    return Document.attributes.bool_op("@>")(literal({key: value}, JSONB))
