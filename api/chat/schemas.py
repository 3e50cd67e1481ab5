"""Bodies of chat, completions and generation. The first two are passed on, so they are only described."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from api.answers.schemas import Annotation, Grounding, Retrieval, Sources
from api.errors import BACKENDS_ERROR

JSONBody = dict[str, Any]

RETRIEVAL = Retrieval.model_json_schema(ref_template="#/components/schemas/{model}")


def _request_body(description: str, required: list[str], example: JSONBody, fields: JSONBody) -> JSONBody:
    schema = {
        "type": "object",
        "required": required,
        "properties": {"model": {"type": "string", "description": "As GET /v1/models names it."}, **fields},
        "additionalProperties": True,
        "description": description,
    }
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }


CHAT_BODY = _request_body(
    "OpenAI's fields, and those of the server that holds the model: they are passed on as they are.",
    ["model", "messages"],
    {"model": "faq", "messages": [{"role": "user", "content": "What does Lathe make?"}], "stream": False},
    {
        "messages": {"type": "array", "items": {"type": "object"}},
        "stream": {"type": "boolean", "default": False},
        "collections": {
            "type": "array",
            "items": {"type": "string"},
            "description": "Ids or names of collections: the answer rests on passages found there.",
        },
        "documents": {
            "oneOf": [{"type": "array", "items": {"type": "string"}}, {"type": "boolean", "enum": [True]}],
            "description": "Ids of files: only these documents are searched. true: the model's own.",
        },
        "retrieval": {
            "type": "object",
            "description": "How passages are found and chosen.",
            "properties": RETRIEVAL["properties"],
        },
    },
)
COMPLETION_BODY = _request_body(
    "OpenAI's fields. The prompt meets no chat template.",
    ["model", "prompt"],
    {"model": "faq", "prompt": "Once upon a time", "max_tokens": 32},
    {"prompt": {"type": "string"}, "stream": {"type": "boolean", "default": False}},
)
CHAT_ANSWER: dict[int | str, JSONBody] = {
    200: {
        "description": "As the model's server gives it; with `stream` as server-sent events.",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
    **BACKENDS_ERROR,
}


TEXT_EVENTS: dict[int | str, JSONBody] = {
    200: {"description": "Server-sent events.", "content": {"text/event-stream": {}}},
    **BACKENDS_ERROR,
}


def _listed(given: object) -> object:
    return [given] if isinstance(given, str) else given


StopTexts = Annotated[
    list[Annotated[str, Field(min_length=1)]], Field(max_length=16), BeforeValidator(_listed)
]


class GenerateParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n_predict: int | None = Field(default=None, ge=-1, le=1_048_576, description="Tokens; -1: no limit.")
    temp: float | None = Field(default=None, ge=0, le=10)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stop: StopTexts | None = None
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    seed: int | None = Field(default=None, ge=-1, le=2**31 - 1)


class GenerateRequest(Sources):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "What does Lathe make?", "model": "faq", "params": {"n_predict": 64, "temp": 0}}
            ]
        },
    )

    prompt: str = Field(min_length=1)
    model: str | None = Field(
        default=None, description="Default: the one of lathe.yaml, else what was published last."
    )
    params: Annotated[GenerateParams, BeforeValidator(lambda given: given or {})] = GenerateParams()


class GenerateAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    model: str
    finish_reason: str | None = Field(description="stop, or length when n_predict was reached")
    prompt_tokens: int | None
    completion_tokens: int | None


class GroundedAnswer(GenerateAnswer, Grounding):
    """An answer from documents."""

    annotations: list[Annotation] = Field(description="The places of the text that cite passages.")
