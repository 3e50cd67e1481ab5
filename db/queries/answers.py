"""Keeping and finding the answers to requests that create rows.

Who may be a repetition of another waits for it under an advisory lock that ends with the transaction, and
so with the process that took it. An answer is written by the transaction that creates its row: there is
either both or neither.
"""

from dataclasses import dataclass
from hashlib import sha256

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

KEPT_HOURS = 24
# A client that repeats by itself does so within its timeouts of 600 s.
REPEATED_WITHIN_MINUTES = 10
FORGOTTEN_AT_ONCE = 50_000

LOCK = text("SELECT pg_advisory_xact_lock(:lock)")
LOCK_SHARED = text("SELECT pg_advisory_xact_lock_shared(:lock)")
LOCK_KEYED = text("SELECT pg_advisory_xact_lock(:key), pg_advisory_xact_lock_shared(:lock)")
BY_KEY = text(
    "SELECT fingerprint, status, body FROM answers "
    "WHERE project_id = :project_id AND path = :path AND key = :key AND expires_at > clock_timestamp()"
)
# The newest: who submits the same twice on purpose repeats the later one.
BY_FINGERPRINT = text(
    "SELECT fingerprint, status, body FROM answers WHERE fingerprint = :fingerprint "
    "AND created_at > clock_timestamp() - make_interval(mins => :minutes) ORDER BY id DESC LIMIT 1"
)
# Only an expired answer can be in the way, since who has the key has its lock.
KEEP = text(
    "INSERT INTO answers (project_id, path, key, fingerprint, status, body, expires_at) VALUES (:project_id, "
    ":path, :key, :fingerprint, :status, :body, clock_timestamp() + make_interval(mins => :minutes)) "
    "ON CONFLICT (project_id, path, key) WHERE key IS NOT NULL DO UPDATE SET "
    "fingerprint = excluded.fingerprint, status = excluded.status, body = excluded.body, "
    "created_at = clock_timestamp(), expires_at = excluded.expires_at"
)
# Not clock_timestamp(): it changes within a statement, so no index can be searched for it.
FORGET = text(
    "DELETE FROM answers WHERE id IN (SELECT id FROM answers WHERE expires_at <= statement_timestamp() "
    "ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED)"
)


@dataclass(frozen=True)
class Asked:
    """What makes two requests the same.

    Args:
        key: the caller's Idempotency-Key.
        again: without a key, whether the caller says that it repeats itself.
    """

    project_id: str
    path: str
    fingerprint: bytes
    key: str | None
    again: bool


@dataclass(frozen=True)
class KeptAnswer:
    fingerprint: bytes
    status: int
    body: str


def fingerprint_of(project_id: str, path: str, body: str) -> bytes:
    return sha256("\0".join((project_id, path, body)).encode()).digest()


def find_answer(session: Session, asked: Asked) -> KeptAnswer | None:
    """Wait for the requests that this one may repeat, and find what was answered.

    Until the transaction ends, each that may repeat this one waits for it. Requests that neither have a
    key nor say that they repeat wait for nobody but those that do.
    """
    lock = _lock_number(asked.fingerprint)
    if asked.key is not None:
        named = "\0".join((asked.project_id, asked.path, asked.key)).encode()
        session.execute(LOCK_KEYED, {"key": _lock_number(sha256(named).digest()), "lock": lock})
        where = {"project_id": asked.project_id, "path": asked.path, "key": asked.key}
        # A statement of its own: one that waited for the lock would not see what was committed meanwhile.
        return _kept(session.execute(BY_KEY, where).one_or_none())
    if not asked.again:
        session.execute(LOCK_SHARED, {"lock": lock})
        return None
    session.execute(LOCK, {"lock": lock})
    since = {"fingerprint": asked.fingerprint, "minutes": REPEATED_WITHIN_MINUTES}
    return _kept(session.execute(BY_FINGERPRINT, since).one_or_none())


def keep_answer(session: Session, asked: Asked, *, status: int, body: str) -> None:
    """Keep an answer in the transaction that makes it true."""
    session.execute(
        KEEP,
        {
            "project_id": asked.project_id,
            "path": asked.path,
            "key": asked.key,
            "fingerprint": asked.fingerprint,
            "status": status,
            "body": body,
            "minutes": KEPT_HOURS * 60 if asked.key is not None else REPEATED_WITHIN_MINUTES,
        },
    )


def forget_answers(session: Session) -> None:
    """Remove answers whose time is over, so many that a sweep keeps up with any API."""
    session.execute(FORGET, {"limit": FORGOTTEN_AT_ONCE})


def _kept(row: Row[tuple[bytes, int, str]] | None) -> KeptAnswer | None:
    return None if row is None else KeptAnswer(bytes(row.fingerprint), row.status, row.body)


def _lock_number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], signed=True)
