"""Ids: a prefix that says what the row is, then a UUIDv7, so that ids sort by age."""

import uuid_utils


def new_id(prefix: str) -> str:
    """Make an id such as `job-0199…`; ids made later by one process sort after it."""
    return f"{prefix}-{uuid_utils.uuid7().hex}"
