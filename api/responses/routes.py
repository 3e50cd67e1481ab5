"""HTTP of responses."""

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from starlette.responses import Response

from api.pages import After, Limit
from api.responses import service, storing
from api.responses.schemas import ItemPage, ResponseDeleted, ResponseOut, ResponseRequest
from api.routing import make_router
from api.unit_of_work import Unit, transactional
from serving.responses.request import Include

router = make_router("responses")

Included = Annotated[list[Include] | None, Query(alias="include[]", description="What to show besides.")]
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ResponseOut,
        "description": "With `stream` as OpenAI's server-sent events.",
        "content": {"text/event-stream": {}},
    }
}


@router.post("/v1/responses", summary="Answer, and keep the conversation", responses=ANSWER)
async def create_response(request: Request, body: ResponseRequest) -> Response:
    """OpenAI's responses: text, functions, and `file_search` over collections, which is done once before the
    model is asked.

    Stored for the project unless `store` is false; `previous_response_id` goes on from a stored one.
    """
    return await service.create(request, body)


@router.get("/v1/responses/{response_id}", response_model=ResponseOut, summary="Look at a response")
@transactional
def get_response(
    unit: Unit,
    response_id: str,
    include: Included = None,
    stream: Annotated[Literal["false"] | None, Query(description="Only what is under way streams.")] = None,
) -> Any:
    return storing.read(unit, response_id, include or ())


@router.delete("/v1/responses/{response_id}", response_model=ResponseDeleted, summary="Delete a response")
@transactional
def delete_response(unit: Unit, response_id: str) -> ResponseDeleted:
    """Conversations that build on it cannot be gone on with after that."""
    return storing.delete(unit, response_id)


@router.post("/v1/responses/{response_id}/cancel", response_model=ResponseOut, summary="Cancel a response")
@transactional
def cancel_response(unit: Unit, response_id: str) -> None:
    """Always refused, since none is made in the background: hang up to end one."""
    storing.cancel(unit, response_id)


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_model=ItemPage,
    summary="List what a response was asked with",
)
@transactional
def list_input_items(
    unit: Unit,
    response_id: str,
    *,
    after: After = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
    include: Included = None,
) -> ItemPage:
    """The conversation before it within, the newest first unless told."""
    return storing.list_input(
        unit, response_id, after=after, limit=limit, newest_first=order == "desc", include=include or ()
    )
