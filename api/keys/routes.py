"""HTTP of API keys."""

from typing import Annotated

from fastapi import Query, Request

from api.errors import CONFLICT
from api.keys.schemas import KeyOut, KeyRequest, KeyWithSecret
from api.keys.service import administered, key_out, make_key
from api.pages import After, Limit, Page, page
from api.routing import make_router
from api.unit_of_work import Unit, services_of, transactional
from db.queries.keys import get_key, list_keys, revoke_key

router = make_router("keys")

OfProject = Annotated[str | None, Query(max_length=63, description="Only keys of this project.")]


# A kept answer would hold the secret, of which nothing but a hash is stored.
@router.post("/v1/keys", response_model=KeyWithSecret, summary="Make an API key", responses=CONFLICT)
@transactional
def create_api_key(unit: Unit, request: Request, body: KeyRequest) -> KeyWithSecret:
    """The answer has the secret, which is never shown again. Sent twice, this makes two keys.

    From the first key on, each request to this server needs one.
    """
    unit.after_commit(services_of(request).keyring.forget)
    return make_key(unit, body)


@router.get("/v1/keys", response_model=Page[KeyOut], summary="List API keys, newest first")
@transactional
def list_api_keys(
    unit: Unit, project: OfProject = None, after: After = None, limit: Limit = 20
) -> Page[KeyOut]:
    """Those of your project; of every project for who administers the server."""
    of_project = administered(unit.caller, project)
    rows, more = list_keys(unit.session, project_id=of_project, after=after, limit=limit)
    return page([key_out(unit, row) for row in rows], more)


@router.get("/v1/keys/{key_id}", response_model=KeyOut, summary="Look at an API key")
@transactional
def get_api_key(unit: Unit, key_id: str) -> KeyOut:
    return key_out(unit, get_key(unit.session, key_id, project_id=administered(unit.caller)))


@router.post("/v1/keys/{key_id}/revoke", response_model=KeyOut, summary="Revoke an API key")
@transactional
def revoke_api_key(unit: Unit, request: Request, key_id: str) -> KeyOut:
    """For good. Within 5 s no process of the API takes it any more; this one does not at once."""
    unit.after_commit(services_of(request).keyring.forget)
    key = get_key(unit.session, key_id, project_id=administered(unit.caller), lock=True)
    revoke_key(unit.session, key)
    return key_out(unit, key)
