"""Rows that say, or ask, the same: known by hashes of what is said, as if white space were all alike."""

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

from training_data.rows import Row

KEY_BYTES = 8  # of ten million rows, two are taken for one with a chance of 3 in a million


def said(row: Row) -> int:
    """A key of all that a row says."""
    parts = [part for message in row.messages for part in (message["role"], message["content"])]
    return _key([*parts, row.rejected or "", str(row.label), row.text or ""])


def asked(row: Row) -> int:
    """A key of what comes before a row's last answer; of a text, of all of it."""
    before = row.messages if row.is_prompt else row.messages[:-1]
    parts = [part for message in before for part in (message["role"], message["content"])]
    return _key([*parts, row.text or ""])


def _key(parts: Iterable[str]) -> int:
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(" ".join(unicodedata.normalize("NFC", part).split()).encode() + b"\0")
    return int.from_bytes(digest.digest(), "little")
