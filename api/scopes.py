"""Which scope a request needs. What is not named here changes something, until somebody says otherwise.

It is asked before any route is looked up or any of a body is read, so it goes by method and path alone.
"""

from db.keys import Scope

# Whose bodies go on as they came, to servers that have limits of their own.
PASSED_ON = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
ASKING = PASSED_ON | {"/generate"}
ADMINISTERING = ("/v1/keys", "/v1/projects", "/v1/audit")
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MODELS, COLLECTIONS = "/v1/models", "/v1/vector_stores"


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """The scopes of which one is needed; a key with `admin` has all."""
    if _is_below(path, *ADMINISTERING):
        return frozenset({Scope.ADMIN})
    if path in ASKING:
        return frozenset({Scope.INFERENCE})
    reads = method in READING_METHODS
    if reads and _is_below(path, MODELS):
        return frozenset({Scope.READ, Scope.INFERENCE})
    searches = _is_below(path, COLLECTIONS) and path.endswith("/search")
    return frozenset({Scope.READ if reads or searches else Scope.WRITE})


def changes_something(method: str, path: str) -> bool:
    """Whether a request is one to be told in the audit log."""
    needed = scopes_for(method, path)
    return method not in READING_METHODS and bool(needed & {Scope.WRITE, Scope.ADMIN})


def _is_below(path: str, *roots: str) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
