"""API keys: what a secret looks like, and what its holder may do.

A secret is 256 random bits, so its plain SHA-256 can be neither guessed nor reversed: a slow hash, which is
for passwords that people choose, would only cost time on every request.
"""

import hashlib
import secrets
from enum import StrEnum

BEGINNING = "sk-lathe-"
SHOWN = len(BEGINNING) + 6  # characters of a secret by which its owner knows it again


class Scope(StrEnum):
    """What a key may do within its project."""

    READ = "read"  # look at everything, follow jobs, search collections
    WRITE = "write"  # submit, upload, change and delete
    INFERENCE = "inference"  # ask models, and list them
    ADMIN = "admin"  # keys, projects and the audit log, and all of the above


USUAL_SCOPES = (Scope.READ, Scope.WRITE, Scope.INFERENCE)
EVERY_SCOPE = frozenset(Scope)


def new_secret() -> str:
    return BEGINNING + secrets.token_urlsafe(32)


def digest_of(secret: bytes) -> bytes:
    """What is stored of a secret, and looked for."""
    return hashlib.sha256(secret).digest()
