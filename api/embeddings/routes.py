"""HTTP of embeddings."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from api.chat.body import read_body
from api.chat.passing import pass_on
from api.unit_of_work import services_of
from db.errors import InvalidInput, NotFound

router = APIRouter(tags=["embeddings"])

EMBEDDING_MODEL = "default"
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "input"],
                    "properties": {
                        "model": {"type": "string", "enum": [EMBEDDING_MODEL]},
                        "input": {
                            "oneOf": [
                                {"type": "string"},
                                {"type": "array", "items": {"type": "string"}},
                            ]
                        },
                        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
                    },
                },
                "example": {"model": EMBEDDING_MODEL, "input": ["What does Lathe make?"]},
            }
        },
    }
}


@router.post(
    "/v1/embeddings",
    summary="Embed texts",
    response_class=Response,
    openapi_extra=BODY,
    responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}},
)
async def embeddings(request: Request) -> Response:
    """OpenAI's embeddings: a text or a list of texts in, a vector for each out."""
    services = services_of(request)
    settings = services.settings
    body = read_body(await request.body())
    if body.members["model"] != EMBEDDING_MODEL:
        raise NotFound(
            f"There is no embedding model {body.members['model']!r}. There is: {EMBEDDING_MODEL}.",
            param="model",
            code="model_not_found",
        )
    if settings.embedding_server_url is None and body.members.get("dimensions") is not None:
        # llama-server would answer with all dimensions, and without a word.
        raise InvalidInput(
            "dimensions is not supported by this version of Lathe: leave it out.",
            param="dimensions",
            code="not_supported",
        )
    return await pass_on(
        services,
        request,
        f"{settings.embedding_url}/v1/embeddings",
        body.with_model(EMBEDDING_MODEL),
        api_key=settings.embedding_server_key.get_secret_value(),
    )
