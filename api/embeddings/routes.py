"""HTTP of embeddings."""

import json
from typing import Any

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.caller import CALLER, known
from api.chat.body import read_body
from api.chat.passing import pass_on
from api.embeddings.checking import check_dimensions, check_request
from api.errors import BACKENDS_ERROR
from api.routing import make_router
from api.unit_of_work import Services, Unit, services_of
from db.errors import Unavailable
from serving.backends.interface import Request as Asked
from serving.backends.interface import request_of
from serving.backends.routing import EMBEDDING_MODEL, find_embedding_destination
from serving.backends.target import Target

router = make_router("embeddings")

BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model", "input"],
                    "properties": {
                        "model": {
                            "type": "string",
                            "description": "`default`, or one that a backend has: `backend/model`.",
                        },
                        "input": {
                            "oneOf": [
                                {"type": "string"},
                                {"type": "array", "items": {"type": "string"}},
                                {"type": "array", "items": {"type": "integer"}},
                                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
                            ],
                            "description": "At most 2,048 texts, or ids of the model's own tokens.",
                        },
                        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
                        "dimensions": {
                            "type": "integer",
                            "description": "Refused unless the model's vectors are that long.",
                        },
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
    responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}, **BACKENDS_ERROR},
)
async def embeddings(request: Request) -> Response:
    """OpenAI's embeddings: a text or a list of texts in, a vector for each out."""
    services = services_of(request)
    body = read_body(await request.body())
    name = body.members["model"]
    check_request(body.members)
    target = await _target(services, name)
    answer = await pass_on(
        request, target, "embed", lambda model: Asked(model, body.members, body.with_model(model))
    )
    dimensions = body.members.get("dimensions")
    if dimensions is not None and answer.status_code < 400:
        check_dimensions(bytes(answer.body), dimensions)
    return answer


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "What is a lathe?"}]})

    text: str = Field(min_length=1)


@router.post("/embeddings", summary="Embed one text", response_model=list[float], responses=BACKENDS_ERROR)
async def embedding_of(request: Request, body: Text) -> list[float] | Response:
    """The short way: a text in, its vector out, of the model `default`."""
    services = services_of(request)
    target = await _target(services, EMBEDDING_MODEL)
    asked = {"model": EMBEDDING_MODEL, "input": [body.text], "encoding_format": "float"}
    answer = await pass_on(request, target, "embed", lambda model: request_of(model, asked))
    return answer if answer.status_code >= 400 else _vector(bytes(answer.body))


def _vector(answer: bytes) -> list[float]:
    try:
        [row] = json.loads(answer)["data"]
        return [float(each) for each in row["embedding"]]
    except (ValueError, LookupError, TypeError) as error:
        raise Unavailable(
            "The embedding server gave an answer that is none.", code="bad_backend_answer"
        ) from error


async def _target(services: Services, model: str) -> Target:
    """Find who embeds.

    Raises:
        NotFound, Unavailable: as `find_embedding_destination`.
    """
    backends = services.backends

    def look(unit: Unit) -> Target:
        return backends.target(
            find_embedding_destination(unit.session, unit.project_id, backends.configs, model)
        )

    name = ("embed", known(CALLER.get()).project_id, model)
    return await services.destinations.of(name, lambda: services.run_reading(look))
