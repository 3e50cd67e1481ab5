"""The one table from what went wrong to an HTTP answer, in the shape that OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from api.validation import explain
from db.errors import (
    Busy,
    Conflict,
    Exhausted,
    InvalidInput,
    LatheError,
    NotFound,
    QuotaExceeded,
    StepFailed,
    Unavailable,
)

RETRY_AFTER_SECONDS = 5
# OpenAI's clients heed no longer Retry-After: told of one, they would ask again within seconds, in vain.
PATIENCE_OF_CLIENTS_SECONDS = 60
METHODS = ("GET", "POST", "DELETE")


class Unauthenticated(LatheError):
    code = "invalid_api_key"


class Forbidden(LatheError):
    code = "forbidden"


class TooLarge(LatheError):
    code = "too_large"


class WrongContentType(LatheError):
    code = "wrong_content_type"


STATUS: dict[type[LatheError], int] = {
    InvalidInput: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    WrongContentType: 415,
    QuotaExceeded: 429,
    Busy: 429,
    StepFailed: 500,
    Unavailable: 503,
    Exhausted: 503,
}
# What every route may answer with, for the documentation.
DESCRIPTIONS = {
    400: "The request is wrong: the field, and the fix.",
    401: "The API key is missing, wrong, expired or revoked.",
    403: "A foreign Host or Origin, or an API key without the scope that it takes.",
    404: "There is none by that name.",
    413: "The body is too large.",
    415: "The body's content type is not the declared one.",
    429: "The project has as much as it may: of requests a minute (see Retry-After), of jobs or bytes.",
    503: "A server that we need does not answer; see Retry-After.",
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    message: str = Field(description="What is wrong, and how to mend it.")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field that is meant.", examples=["learning_rate"])
    code: str = Field(description="The same, for a program.", examples=["invalid_input"])


class ErrorBody(BaseModel):
    """Every answer of status 400 and above."""

    error: ErrorDetail


CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "Its state, or a job that needs it, does not allow this."}
}
# Of routes that pass a request on.
BACKENDS_ERROR: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorBody, "description": "The error of the model's server, with its status."}
}


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(
    status: int,
    message: str,
    *,
    code: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    sent = dict(headers or {})
    if status == 503:
        sent.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    if status == 409:
        # OpenAI's client repeats a request on 409 unless it is told that this is of no use.
        sent["x-should-retry"] = "false"
    if status == 401:
        sent["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(status, message, code=code, param=param), status, sent)


def answer_to(error: Exception, scope: Scope) -> JSONResponse | None:
    """The answer to an error that we know, or None."""
    if isinstance(error, LatheError):
        return _answer_to_ours(error)
    if isinstance(error, RequestValidationError):
        field = getattr(scope.get("route"), "body_field", None)
        body = field.field_info.annotation if field is not None else None
        message, param, code = explain(error.errors(), body)
        return error_response(400, message, code=code, param=param)
    if isinstance(error, HTTPException):
        return _answer_to_starlettes(error, scope)
    if isinstance(error, DataError):
        return error_response(
            400, "A value is out of the range that the database takes.", code="invalid_input"
        )
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        return error_response(
            503, "The database does not answer now; try again.", code="database_unavailable"
        )
    return None


def _answer_to_ours(error: LatheError) -> JSONResponse:
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    headers: dict[str, str] = {}
    if isinstance(error, Exhausted):
        headers["x-should-retry"] = "false"  # waiting does not make room on a disk
    if isinstance(error, QuotaExceeded) and error.retry_after_seconds is None:
        headers["x-should-retry"] = "false"  # as long as nobody makes room
    if isinstance(error, Unavailable | QuotaExceeded) and error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
        if error.retry_after_seconds > PATIENCE_OF_CLIENTS_SECONDS:
            headers["x-should-retry"] = "false"
    return error_response(status, error.message, code=error.code, param=error.param, headers=headers)


def _answer_to_starlettes(error: HTTPException, scope: Scope) -> JSONResponse:
    headers = dict(error.headers or {})
    method, path = scope["method"], scope["path"]
    if error.status_code == 404:
        return error_response(404, f"There is no {method} {path}.", code="unknown_route", headers=headers)
    if error.status_code == 405:
        allowed = ", ".join(_methods_of(scope))
        message = f"{path} does not take {method}: it takes {allowed}."
        return error_response(405, message, code="method_not_allowed", headers={"allow": allowed})
    status = 400 if error.status_code == 422 else error.status_code
    code = "invalid_input" if status < 500 else "server_error"
    return error_response(status, str(error.detail), code=code, headers=headers)


def _methods_of(scope: Scope) -> list[str]:
    """What a path takes. Starlette tells only of the first of the routes that have it."""
    routes = scope["app"].routes
    return [
        method
        for method in METHODS
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
