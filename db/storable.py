"""JSON that cannot be kept or written, though models, files and servers say it."""

import math
from collections.abc import Iterable
from typing import Any

from db.errors import InvalidInput


def storable(value: Any) -> Any:
    """The same without what Postgres takes not: NaN and infinity, NUL, and halves of surrogate pairs."""
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.replace("\0", "�").encode(errors="replace").decode()
    return value


def refuse_deep(value: Any, field: str, *, most: int = 100) -> None:
    """JSON may be nested as deep as Python reads it, and be written no more.

    Raises:
        InvalidInput: it is nested deeper than anybody means.
    """
    level = [value]
    for _ in range(most):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return
    raise InvalidInput(f"{field} is nested deeper than {most} levels.", param=field)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
