"""What happens to API keys. Who administers the server does so for all projects, others for their own."""

from datetime import UTC, datetime

from api.caller import Caller
from api.keys.schemas import KeyOut, KeyRequest, KeyWithSecret
from api.pages import unix_seconds, unix_seconds_or_none
from api.unit_of_work import Unit
from db.errors import Conflict, InvalidInput, NotFound
from db.models import ApiKey
from db.queries.keys import create_key
from db.queries.projects import get_project
from db.session import clock


def administered(caller: Caller, wanted: str | None = None) -> str | None:
    """Of which project an administrator sees rows; None: of all.

    Args:
        wanted: a project that was asked for.
    Raises:
        NotFound: it is another's.
    """
    if caller.is_operator:
        return wanted
    if wanted not in (None, caller.project_id):
        raise NotFound(f"There is no project {wanted!r}.", param="project")
    return caller.project_id


def make_key(unit: Unit, request: KeyRequest) -> KeyWithSecret:
    """Make a key for a project.

    Raises:
        NotFound: there is no such project, or it is another's.
        Conflict: the project is archived.
        InvalidInput: the key would have expired already.
    """
    project_id = administered(unit.caller, request.project) or unit.project_id
    project = get_project(unit.session, project_id)
    if project.archived_at is not None:
        raise Conflict(f"The project {project_id!r} is archived: restore it first.", code="project_archived")
    now = clock(unit.session)
    expires_at = None
    if request.expires_at is not None:
        expires_at = datetime.fromtimestamp(request.expires_at, UTC)
        if expires_at <= now:
            raise InvalidInput(
                f"expires_at is in the past: it is {unix_seconds(now)} now.", param="expires_at"
            )
    key, secret = create_key(
        unit.session,
        project_id=project_id,
        name=request.name,
        scopes=request.scopes,
        expires_at=expires_at,
    )
    return KeyWithSecret(**key_out(unit, key).model_dump(), key=secret)


def key_out(unit: Unit, key: ApiKey) -> KeyOut:
    status = "active"
    if key.revoked_at is not None:
        status = "revoked"
    elif key.expires_at is not None and key.expires_at <= clock(unit.session):
        status = "expired"
    return KeyOut.model_validate(
        {
            "id": key.id,
            "name": key.name,
            "project": key.project_id,
            "prefix": key.prefix,
            "scopes": key.scopes,
            "status": status,
            "created_at": unix_seconds(key.created_at),
            "expires_at": unix_seconds_or_none(key.expires_at),
            "revoked_at": unix_seconds_or_none(key.revoked_at),
            "last_used_at": unix_seconds_or_none(key.last_used_at),
        }
    )
