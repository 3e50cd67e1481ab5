"""Which scope a request needs. What is not named here changes something, until somebody says otherwise.

It is asked before any route is looked up or any of a body is read, so it goes by method and path alone.
"""

from db.keys import Scope

# Whose bodies go on as they came, to servers that have limits of their own.
PASSED_ON = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
ASKING = PASSED_ON | {"/generate", "/agenerate", "/embeddings"}
ADMINISTERING = ("/v1/keys/", "/v1/projects/", "/v1/audit/")
MODELS, COLLECTIONS, RESPONSES = "/v1/models/", "/v1/vector_stores/", "/v1/responses/"
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

TO_ADMINISTER = frozenset({Scope.ADMIN})
TO_ASK = frozenset({Scope.INFERENCE})
TO_SEE_WHAT_ANSWERS = frozenset({Scope.READ, Scope.INFERENCE})
TO_READ = frozenset({Scope.READ})
TO_WRITE = frozenset({Scope.WRITE})
# Who asks may take back what it has left behind.
TO_FORGET = frozenset({Scope.WRITE, Scope.INFERENCE})


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """The scopes of which one is needed; a key with `admin` has all."""
    folder = f"{path}/"
    if folder.startswith(ADMINISTERING):
        return TO_ADMINISTER
    if path in ASKING:
        return TO_ASK
    if folder.startswith(RESPONSES):
        return {"POST": TO_ASK, "DELETE": TO_FORGET}.get(method, TO_SEE_WHAT_ANSWERS)
    if method in READING_METHODS:
        # A model's documents come after its name, which may hold slashes.
        names_model = folder.startswith(MODELS) and "/documents/" not in folder
        return TO_SEE_WHAT_ANSWERS if names_model else TO_READ
    searches = path.startswith(COLLECTIONS) and path.endswith("/search")
    return TO_READ if searches else TO_WRITE


def changes_something(method: str, path: str) -> bool:
    """Whether a request is one to be told in the audit log."""
    return method not in READING_METHODS and scopes_for(method, path) in (TO_WRITE, TO_FORGET, TO_ADMINISTER)
