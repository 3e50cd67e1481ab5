"""Files of TOML in which the operator names what requests may name: read, and wrong in words that help.

A setting, such as LATHE_SQL, says where the file is; each error begins with it.
"""

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from db.errors import InvalidInput

Entry = TypeVar("Entry", bound=BaseModel)


def read_toml(path: Path | None, setting: str) -> dict[str, Any]:
    """The whole file; empty where the setting names none.

    Raises:
        InvalidInput: it cannot be read, or is no TOML.
    """
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise wrong(setting, f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise wrong(setting, f"{path} is no TOML: {error}.") from error


def checked(model: type[Entry], setting: str, place: str, name: str, table: Any) -> Entry:
    """An entry, with its name among its fields.

    Args:
        place: the table's name as the file writes it.
    Raises:
        InvalidInput: it is none; the message names each field that is wrong.
    """
    if not isinstance(table, dict):
        raise wrong(setting, f"{place} is no table: write [{place}] on a line of its own.")
    try:
        return model.model_validate({**table, "name": name})
    except ValidationError as error:
        lines = [
            ".".join(str(part) for part in (place, *row["loc"]))
            + f": {row['msg'].removeprefix('Value error, ')}"
            for row in error.errors()
        ]
        raise wrong(setting, f"{'; '.join(lines)}.") from None


def wrong(setting: str, message: str) -> InvalidInput:
    return InvalidInput(f"{setting}: {message}", param=setting)
