"""What Postgres takes neither as text nor as JSON, though models, files and servers say it."""

import math
from typing import Any


def storable(value: Any) -> Any:
    """The same without NaN and infinity, NUL, and halves of surrogate pairs."""
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.replace("\0", "�").encode(errors="replace").decode()
    return value
