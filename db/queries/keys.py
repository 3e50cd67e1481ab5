"""Making, finding, listing and revoking API keys."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.ids import new_id
from db.keys import SHOWN, Scope, digest_of, new_secret
from db.models import ApiKey, Project
from db.queries.paging import page_of

USE_NOTED_SECONDS = 60


@dataclass(frozen=True)
class KeyHolder:
    """A key and its project, as they were at one moment. `seconds_left`: until it expires."""

    key: ApiKey
    project: Project
    seconds_left: float | None


def create_key(
    session: Session, *, project_id: str, name: str, scopes: Iterable[Scope], expires_at: datetime | None
) -> tuple[ApiKey, str]:
    """Make a key; return it and its secret, which cannot be had again.

    Args:
        project_id: of a project that is there.
    """
    secret = new_secret()
    key = ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        prefix=secret[:SHOWN],
        hash=digest_of(secret.encode()),
        scopes=sorted(set(scopes)),
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    return key, secret


def find_holder(session: Session, digest: bytes) -> KeyHolder | None:
    """Find a key by the hash of its secret, whatever has become of it.

    How long that takes tells of a hash and not of a secret.
    """
    left = func.extract("epoch", ApiKey.expires_at - func.clock_timestamp())
    query = select(ApiKey, Project, left).join(Project, Project.id == ApiKey.project_id)
    row = session.execute(query.where(ApiKey.hash == digest)).one_or_none()
    if row is None:
        return None
    key, project, seconds_left = row
    return KeyHolder(key, project, float(seconds_left) if seconds_left is not None else None)


def has_keys(session: Session) -> bool:
    """Whether a key was ever made."""
    return session.scalars(select(exists().select_from(ApiKey))).one()


def get_key(session: Session, key_id: str, *, project_id: str | None, lock: bool = False) -> ApiKey:
    """Find one key of a project; of any without `project_id`.

    Raises:
        NotFound: there is none by that id.
    """
    query = select(ApiKey).where(ApiKey.id == key_id)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if lock:
        query = query.with_for_update()
    key = session.scalars(query).one_or_none()
    if key is None:
        raise NotFound(f"There is no API key {key_id!r}.", param="id")
    return key


def list_keys(
    session: Session, *, project_id: str | None, after: str | None = None, limit: int = 20
) -> tuple[list[ApiKey], bool]:
    """One page of keys, newest first, and whether there are more; revoked ones too."""
    query = select(ApiKey)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    return page_of(session, query, ApiKey.id, after=after, limit=limit)


def revoke_key(session: Session, key: ApiKey) -> None:
    """Revoke a locked key for good. Twice is the same as once."""
    if key.revoked_at is None:
        key.revoked_at = func.clock_timestamp()
        session.flush()
        session.refresh(key)


def note_use(session: Session, key_ids: Iterable[str]) -> None:
    """Write when keys were last used, unless that was written within the last minute."""
    stale = func.clock_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, USE_NOTED_SECONDS)
    session.execute(
        update(ApiKey)
        .where(ApiKey.id.in_(key_ids), (ApiKey.last_used_at.is_(None)) | (ApiKey.last_used_at < stale))
        .values(last_used_at=func.clock_timestamp())
    )
